"""Texts -> token ids: which tokens stand first, and which text may spell a control token.

A tokenizer reads the text of a control token ("</s>", "<|im_end|>") as that token wherever it stands. A template may
mean it; a user's row does not, so there it stays text: it is marked before the template is rendered, and encoded piece
by piece (transformers' own way for chats).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from justforward.compat import encode_marked, mark_control_tokens

if TYPE_CHECKING:
    from justforward.tasks.base import Sample, Task

OPEN, _, CLOSE = mark_control_tokens("x", re.compile("x"))
_MARKED = re.compile(f"{OPEN}(.)(.*?){CLOSE}", re.DOTALL)


class TextTokenizer:
    """Encodes a task's texts with one tokenizer.

    first: the special tokens that every row starts with: what the tokenizer's own template puts before a text, or
    `bos_token_id` alone where it is given. What the template puts behind a text would end it, and is left away.
    """

    def __init__(self, tokenizer: Any, task: Task, *, bos_token_id: int | None = None):
        self.tokenizer, self.task = tokenizer, task
        self.first = first_tokens(tokenizer) if bos_token_id is None else (bos_token_id,)
        special = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        special |= {i: token.content for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        longest_first = sorted(filter(str.strip, special.values()), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._special = special
        firsts = {*self.first, tokenizer.bos_token_id}
        self._firsts = {i: text for i, text in special.items() if i in firsts}

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without first tokens; what `as_text` has marked becomes no control token."""
        if not any(mark in text for text in texts for mark in (OPEN, CLOSE)):
            return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return [self._marked(text) for text in texts]

    def control_tokens(self) -> dict[str, int]:
        """The tokenizer's control tokens by their texts."""
        return {text: i for i, text in self._special.items() if text.strip()}

    def as_text(self, sample: Sample) -> Sample:
        """The sample, the control tokens that its row spells marked as text (not where the task says `markup`)."""
        if self.task.markup or not any(self._control.search(text) for text in _texts(sample.data)):
            return sample

        def mark(value: Any) -> Any:
            marked = mark_control_tokens(value, self._control)
            return tuple(marked) if isinstance(value, tuple) else marked

        marked = replace(sample, data=mark(dict(sample.data)))
        if self.task.candidates is None and not self.task.generation:
            return marked  # the options are the task's own texts
        return replace(marked, candidates=mark(sample.candidates), correct=mark(sample.correct))

    def starting(self, ids: Sequence[int]) -> tuple[int, ...]:
        """A row of these ids: behind the first tokens, which a text that begins with them does not get twice.

        Where there are none, what a template spells stays as it is.
        """
        if not self.first:
            return tuple(ids)
        begin = next((k for k, token in enumerate(ids) if token not in self._firsts), len(ids))
        return (*self.first, *ids[begin:])

    def following(self, text: str) -> str:
        """A text as it stands behind others: without the first tokens that a template spells at its beginning."""
        for spelt in self._firsts.values():
            if text.startswith(spelt):
                return self.following(text[len(spelt) :].lstrip(" "))
        return text

    def _marked(self, text: str) -> list[int]:
        try:
            return encode_marked(self.tokenizer, text)
        except ValueError:
            # The token is one of the vocabulary's pieces too, so the whole of its text always gives it: halves do not.
            return encode_marked(self.tokenizer, _MARKED.sub(rf"\1{OPEN}\2", text))


def spelt_in(text: str) -> list[str]:
    """The control tokens of a rendered text that are marked as text."""
    return ["".join(parts) for parts in _MARKED.findall(text)]


def first_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The special tokens that a tokenizer's template puts before a text, read off a text that it encodes."""
    special = set(tokenizer.all_special_ids)
    for text in _some_text(tokenizer):
        plain, whole = (tokenizer(text, add_special_tokens=add)["input_ids"] for add in (False, True))
        if plain and not special & set(plain):
            return next((tuple(whole[:k]) for k in range(len(whole)) if whole[k : k + len(plain)] == plain), ())
    return ()


def _some_text(tokenizer: Any) -> Iterator[str]:
    yield "a"
    yield from (tokenizer.decode([i]) for i in sorted(tokenizer.get_vocab().values()))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts, value))
