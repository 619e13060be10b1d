"""Where a generated answer ends: at the model's own end tokens, and at a text, whatever tokens write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria

from justforward.models.generation_config import token_ids


class StopText(StoppingCriteria):
    """Done where the text of a row's new tokens holds `text`.

    Only the new tokens are read, and only where the last one can have completed the text. (transformers' own
    StopStringCriteria reads the prompt too, and splits every token of the vocabulary first.)

    Args:
        tokenizer: its `batch_decode` is asked.
        text: what ends an answer, not empty.
        start: number of tokens before the new ones.
        completes: whether a token can write the end of the text, as far as known; filled here.
    """

    def __init__(self, tokenizer: Any, text: str, start: int, completes: dict[int, bool]):
        self.tokenizer, self.text, self.start, self.completes = tokenizer, text, start, completes

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """[B] bool for input_ids [B, N]."""
        last = input_ids[:, -1].tolist()
        done = [self._completes(token) and self._holds(row) for token, row in zip(last, input_ids, strict=True)]
        return torch.tensor(done, device=input_ids.device)

    def _completes(self, token: int) -> bool:
        if token not in self.completes:
            # Twice, since a blank at the start of a text is dropped; a part of a letter is a replacement character.
            written = decode(self.tokenizer, [token, token])
            self.completes[token] = self.text[-1] in written or "\ufffd" in written
        return self.completes[token]

    def _holds(self, row: Tensor) -> bool:
        return self.text in decode(self.tokenizer, row[self.start :].tolist())


def decode(tokenizer: Any, tokens: Sequence[int], *, hide_control: bool = True) -> str:
    """The text of some tokens, without that of control tokens unless asked for."""
    return tokenizer.batch_decode(torch.tensor([list(tokens)]), skip_special_tokens=hide_control)[0]


def stop_tokens(tokenizer: Any, text: str, config: GenerationConfig) -> list[int]:
    """Tokens that end an answer by themselves: what the stop text is as one token, and the tokenizer's and model's end.

    A control token that the stop text names is one of them: the text of an answer never shows it.
    """
    written = tokenizer.encode(text, add_special_tokens=False)
    whole = [token for token in written[-1:] if decode(tokenizer, [token]) == text]
    named = [token for token in written if _is_control(tokenizer, token, text)]
    return list(dict.fromkeys([*whole, *named, *token_ids(tokenizer.eos_token_id), *token_ids(config.eos_token_id)]))


def _is_control(tokenizer: Any, token: int, text: str) -> bool:
    shown = decode(tokenizer, [token], hide_control=False)
    return shown != "" and shown in text and decode(tokenizer, [token]) == ""


def unwritable(tokenizer: Any, text: str) -> str | None:
    """What becomes of a stop text that the tokenizer does not keep; None for one that it keeps."""
    alone, within = (
        decode(tokenizer, tokenizer.encode(given, add_special_tokens=False), hide_control=False)
        for given in (text, f"a{text}a")
    )
    if text in alone or text in within:
        return None
    return (
        f"--eos_token {text!r}: this tokenizer makes {alone!r} of it, so no answer will hold it; answers end at the "
        "model's own end tokens or after --max_new_tokens (give a text that the tokenizer keeps)"
    )
