"""Prompts as conversations, through a tokenizer's own chat template: what instruct models were trained to read.

The prompt is the user's turn, demonstrations are turns before it, and the option or answer is scored in the assistant's
turn, which stands opened. Tokens are those of the rendered text; a row's text that spells a control token stays text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from justforward.scoring.prompts import PromptEncoder, Row, common_start
from justforward.scoring.verbatim import VerbatimEncoder

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

    def whole(self, sample: Sample) -> list[Row]:
        """A row for each turn of the assistant, scored up to the token that ends it; or one, of all turns.

        A conversation that is too long loses its end: turns that begin there are not learned.
        """
        assert self.task.turns is not None
        turns = self.task.turns(self.tokenize.as_text(sample).data)
        text = self._render(turns, opens=False)
        self.remarks.kept_text(sample, [text])
        if self.task.all_turns:
            return self._pieces(sample, self._tokens(sample, text))
        rows, lost = [], max(0, len(self._tokens(sample, text)) - self.max_length)
        for i, turn in enumerate(turns):
            if turn["role"] == "assistant":
                opened = self._render(turns[:i])
                answer = opened + turn["content"].strip() + self.close
                before, tokens = (self._tokens(sample, one) for one in (opened, answer))
                start = max(1, len(self.first), common_start(before, tokens))
                if start < min(len(tokens), self.max_length):
                    rows.append(Row(tokens[: self.max_length], start))
        self.remarks.cut(sample, lost)
        if not rows:
            raise ValueError(
                f"no turn of the assistant lies in the first {self.max_length} tokens: raise --max_length, or take the "
                f"row out (row {sample.id})"
            )
        return rows

    def last_answer(self, sample: Sample) -> tuple[tuple[int, ...], str]:
        """The token row of a conversation up to the assistant's last turn, to be continued; and that turn's text.

        What is too long loses its oldest tokens.
        """
        assert self.task.turns is not None
        turns = self.task.turns(self.tokenize.as_text(sample).data)
        last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
        tokens, first = self._tokens(sample, self._render(turns[:last])), len(self.first)
        lost = max(0, len(tokens) - max(first + 1, self.max_length - self.max_new_tokens))
        return (*tokens[:first], *tokens[first + lost :]), turns[last]["content"]

    def _tokens(self, sample: Sample, text: str) -> tuple[int, ...]:
        tokens = self.tokenize.starting(self.tokenize([text])[0])
        self._check_ids(tokens, "the text holds", "take it out of the text", f" (row {sample.id})")
        return tokens

    def _render(self, turns: Sequence[dict[str, str]], *, opens: bool = True) -> str:
        told = any(turn["role"] == "system" for turn in turns)  # a row's own comes first
        system = [] if self.task.system is None or told else [_turn("system", self.task.system)]
        try:
            return self.tokenizer.apply_chat_template(
                [*system, *turns], tokenize=False, add_generation_prompt=opens, enable_thinking=False
            )
        except Exception as error:  # whatever a template raises: jinja's own errors, and Python's inside it
            raise ValueError(f"--chat_template: the template of this model's tokenizer says: {error}") from error


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def encoder_of(tokenizer: Any, task: Task, **settings: Any) -> PromptEncoder:
    """What turns samples of a task into token rows: as texts, or as the task says, as conversations or verbatim."""
    if task.harness is not None:
        return VerbatimEncoder(tokenizer, task, **settings)
    return (ChatEncoder if task.chat else PromptEncoder)(tokenizer, task, **settings)
