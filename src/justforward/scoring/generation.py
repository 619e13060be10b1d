"""Generated answers: prompts sorted by length and batched, each continued until its answer ends."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import GenerationConfig

from justforward.models.generation_config import token_ids
from justforward.optim.distribution.shards import is_sharded
from justforward.scoring.continuing import Continuer
from justforward.scoring.engine import TOKEN_BUDGET
from justforward.scoring.stopping import StopText, decode, stop_tokens, unwritable

logger = logging.getLogger(__name__)

KEPT_TOKENS = {"cpu": 4 * TOKEN_BUDGET["cpu"], "cuda": 2 * TOKEN_BUDGET["cuda"]}
"""Default rows x (prompt + new tokens) of a batch, by device type. More than are scored at once: a token that is kept
takes less memory than one that is computed, and each further batch costs as many passes as there are new tokens."""


BEAM_PROMPTS = 8
"""Prompts that beams are proven on."""

TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


@dataclass(frozen=True)
class GenerationSettings:
    """How continuations are drawn: greedy, `num_beams` > 1, or `sampling` with temperature, top_k and top_p.

    eos_token: an answer ends before this text, or one of `other_ends`, or at an end token of the tokenizer or the
    model. Of the model's own generation config nothing else counts. verbatim: answers keep the blanks around them.
    """

    max_new_tokens: int = 50
    eos_token: str = "\n"
    sampling: bool = False
    temperature: float = 1.0
    num_beams: int = 1
    top_k: int | None = None
    top_p: float = 0.95
    other_ends: tuple[str, ...] = ()
    verbatim: bool = False

    @property
    def ends(self) -> tuple[str, ...]:
        """All texts that end an answer."""
        return (self.eos_token, *self.other_ends)


class Generator:
    """Continues token rows with one model; `token_budget` bounds rows x (prompt + new tokens) of a batch.

    device: where the model computes; None for where its weights are; ends: tokens that end an answer, besides those
    that tokenizer and model name.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        settings: GenerationSettings,
        *,
        token_budget: int | None = None,
        device: torch.device | None = None,
        ends: Sequence[int] = (),
    ):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.device = device or next(model.parameters()).device
        self.token_budget = token_budget or KEPT_TOKENS.get(self.device.type, KEPT_TOKENS["cuda"])
        self.halved = False
        if not settings.eos_token:
            raise ValueError("--eos_token '' is no token of this model: give the text that ends an answer")
        base: Any = getattr(model, "get_base_model", lambda: model)()
        rows = base.get_input_embeddings().weight.shape[0]
        stops = [token for end in settings.ends for token in stop_tokens(tokenizer, end, base.generation_config)]
        self.stops = [token for token in dict.fromkeys([*stops, *ends]) if token < rows]
        # Masked, so that any token of the embedding will do.
        self.pad = next((t for t in (*token_ids(tokenizer.pad_token_id), *self.stops) if t < rows), 0)
        self.continuer = Continuer(
            model, device=self.device, pad=self.pad, new_tokens=settings.max_new_tokens, num_beams=settings.num_beams
        )
        self.proven: tuple[int, ...] = (0, 0, 0)
        """Size of what the present way of continuing is proven on; see `_size`."""
        self.completes: dict[str, dict[int, bool]] = {end: {} for end in settings.ends}
        lost = None if settings.verbatim else unwritable(tokenizer, settings.eos_token)
        for told in (lost, set_aside(base.generation_config)):
            if told is not None:
                logger.warning("%s", told)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], progress: Callable[[int], None] | None = None) -> list[str]:
        """One continuation per prompt, in the order given; `progress` is told each batch's size."""
        texts = [""] * len(prompts)
        todo = self._planned(prompts) if prompts else deque()
        while todo:
            batch = todo.popleft()
            made = self._try_generate([prompts[i] for i in batch])
            if made is None:
                todo.extendleft((batch[len(batch) // 2 :], batch[: len(batch) // 2]))
                continue
            for i, text in zip(batch, made, strict=True):
                texts[i] = text
            if progress is not None:
                progress(len(batch))
        return texts

    def _try_generate(self, prompts: list[Sequence[int]]) -> list[str] | None:
        """One batch, or None, with the token budget halved, where memory ran out for the first time."""
        try:
            return self._generate(prompts)
        except Exception as error:
            self._retreat(error, len(prompts))
        return None

    def _retreat(self, error: Exception, rows: int) -> None:
        """Halve the token budget where memory ran out for the first time; raise what else went wrong."""
        if self.halved or rows < 2 or is_sharded(self.model) or not should_reduce_batch_size(error):
            raise error
        self.halved, self.token_budget = True, max(1, self.token_budget // 2)
        logger.warning("out of memory generating from %d prompts at once: they are taken in halves", rows)

    def _planned(self, prompts: Sequence[Sequence[int]]) -> deque[list[int]]:
        """Batches of indices into `prompts`, in a way of continuing that is proven for such."""
        try:
            self._prove(prompts)
        except Exception as error:
            self._retreat(error, len(prompts))
            self._prove(prompts)
        return deque(self._batches(prompts))

    def _prove(self, prompts: Sequence[Sequence[int]]) -> None:
        if all(now <= before for now, before in zip(self._size(prompts), self.proven, strict=True)):
            return
        way = self.continuer.way
        self.continuer.settle(lambda: self._samples(prompts))
        before = self.proven if self.continuer.way is way else (0, 0, 0)
        self.proven = tuple(map(max, self._size(prompts), before))

    def _size(self, prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Of batches made in the present way: longest prompt, most padding, most rows (up to 2)."""
        batches = self._batches(prompts)
        padding = max(_padding(prompts, batch) for batch in batches)
        return len(prompts[batches[0][0]]), padding, min(2, max(map(len, batches)))

    def _samples(self, prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
        """Batches that would show what is wrong with the present way: some of the most padded one, and the longest.

        With beams several alone: a wrong cache shows where beams change places, which they do not at every prompt.
        """
        batches = self._batches(prompts)
        most = max(batches, key=lambda b: (_padding(prompts, b), min(2, len(b)), len(prompts[b[0]])))
        picked = [[prompts[i] for i in _spread(most, 3)]]
        alone = _spread([i for batch in batches for i in batch], 1 if self.settings.num_beams == 1 else BEAM_PROMPTS)
        return picked + [[prompts[i]] for i in alone if [prompts[i]] != picked[0]]

    def _batches(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices into `prompts`, the longest first."""
        batches: list[list[int]] = []
        for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            if batches and self._joins(len(prompts[i]), batches[-1], len(prompts[batches[-1][0]])):
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _joins(self, length: int, batch: list[int], longest: int) -> bool:
        way, settings = self.continuer.way, self.settings
        tokens = (len(batch) + 1) * settings.num_beams * (longest + settings.max_new_tokens)
        return tokens <= self.token_budget and (way.rows == "any" or (way.rows == "equal" and length == longest))

    def _generate(self, prompts: list[Sequence[int]]) -> list[str]:
        s = self.settings
        sampling = {"temperature": s.temperature, "top_k": s.top_k or 0, "top_p": s.top_p} if s.sampling else {}
        output, start = self.continuer.generate(
            prompts,
            lambda start: [StopText(self.tokenizer, end, start, self.completes[end]) for end in s.ends],
            do_sample=s.sampling,
            eos_token_id=self.stops or None,
            **sampling,
        )
        return [self._answer(row) for row in output[:, start:].tolist()]

    def _answer(self, tokens: list[int]) -> str:
        """The text of new tokens before the first stop; beam search fills up with -1 where there is no stop token."""
        ends = (i for i, token in enumerate(tokens) if token in self.stops or token < 0)
        text = decode(self.tokenizer, tokens[: next(ends, len(tokens))])
        for end in self.settings.ends:
            text = text.partition(end)[0]
        return text if self.settings.verbatim else text.strip()


def set_aside(config: GenerationConfig) -> str | None:
    """What a model's generation config asks for besides its tokens, all of which we leave aside; None for nothing."""
    ours = {*TOKENS, "use_cache"}
    known = [name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in ours]
    asked = [name for name in known if getattr(config, name, None)]
    if not asked:
        return None
    return f"not used of the model's generation config: {', '.join(asked)}; only its end tokens are"


def _spread(items: list[int], count: int) -> list[int]:
    """`count` of the items at even distances, the first and the last among them, or all."""
    if len(items) <= count:
        return items
    return [items[i * (len(items) - 1) // max(1, count - 1)] for i in range(count)]


def _padding(prompts: Sequence[Sequence[int]], batch: list[int]) -> int:
    """Tokens by which the shortest prompt of a batch, its last, is filled up."""
    return len(prompts[batch[0]]) - len(prompts[batch[-1]])
