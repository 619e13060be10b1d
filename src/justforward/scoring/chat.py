"""Prompts as conversations, through a tokenizer's own chat template: what instruct models were trained to read.

The prompt is the user's turn, demonstrations are turns before it, and the option or answer is scored in the assistant's
turn, which stands opened. Tokens are those of the rendered text; a row's text that spells a control token stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from justforward.scoring.prompts import PromptEncoder

if TYPE_CHECKING:
    from justforward.tasks.base import Sample, Task

_QUESTION, _ANSWER = "justforward-question", "justforward-answer"
"""Texts that no template changes, by which it is read."""


class ChatEncoder(PromptEncoder):
    """A PromptEncoder whose texts are turns of a conversation; arguments as there.

    end_of_turn: the token that ends the assistant's turn, where it is one; close: the text of it, with which an answer
    that is to be generated ends in training.

    Raises ValueError, in one line, for a tokenizer without a template, and one whose template does not take the turns.
    """

    def __init__(self, tokenizer: Any, task: Task, **settings: Any):
        super().__init__(tokenizer, task, **settings)
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "--chat_template: the tokenizer of this model has none: leave it out, or take a chat model"
            )
        asked = [_turn("user", _QUESTION)]
        opened, whole = self._render(asked), self._render([*asked, _turn("assistant", _ANSWER)], opens=False)
        if _QUESTION not in opened or _ANSWER not in whole:
            raise ValueError(
                "--chat_template: the template of this model's tokenizer shows no turns of user and assistant"
            )
        self.close, self.end_of_turn = self._closing(whole.rpartition(_ANSWER)[2])

    def _closing(self, behind: str) -> tuple[str, int | None]:
        """The text that ends a turn, up to its first control token; and that token."""
        found = {behind.find(text): text for text in self.tokenize.control_tokens() if text in behind}
        if not found:
            return behind.rstrip(), None
        first = min(found)
        return behind[: first + len(found[first])], self.tokenize.control_tokens()[found[first]]

    def _shown(self, demonstrations: Sequence[Sample]) -> Callable[[str, str], str]:
        task, turns = self.task, []
        for shown in map(self.tokenize.as_text, demonstrations):
            prompt = task.prompt(shown)
            answer = task.verbalize(shown, task.gold(shown))[len(prompt) :]
            turns += [_turn("user", prompt.strip()), _turn("assistant", answer.strip())]

        def show(prompt: str, text: str) -> str:
            opened = self._render([*turns, _turn("user", prompt.strip())])
            answer = text[len(prompt) :].strip()
            return opened + answer + (self.close if answer and task.generation else "")

        return show

    def _render(self, turns: Sequence[dict[str, str]], *, opens: bool = True) -> str:
        system = [] if self.task.system is None else [_turn("system", self.task.system)]
        try:
            return self.tokenizer.apply_chat_template(
                [*system, *turns], tokenize=False, add_generation_prompt=opens, enable_thinking=False
            )
        except Exception as error:  # whatever a template raises: jinja's own errors, and Python's inside it
            raise ValueError(f"--chat_template: the template of this model's tokenizer says: {error}") from error


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def encoder_of(tokenizer: Any, task: Task, **settings: Any) -> PromptEncoder:
    """What turns samples of a task into token rows: as texts, or as the task says, as conversations."""
    return (ChatEncoder if task.chat else PromptEncoder)(tokenizer, task, **settings)
