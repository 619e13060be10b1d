"""Continues token rows with transformers' `generate`, in the fastest way that gives what plain rows give.

A batch pads its shorter rows on the left, and a cache keeps what was computed; not every model takes both. Which way
is right for a model is not looked up but proven, on rows as long and as padded as those to come: the logits of a few
new tokens are held against those of the same row fed plainly, alone and without a cache.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import GenerationConfig, StaticCache, StoppingCriteria, StoppingCriteriaList

from justforward.compat import CACHE
from justforward.scoring.engine import prefix_length

logger = logging.getLogger(__name__)

PROOF_TOKENS = 3
"""New tokens of a proof: the prompt's pass gives the first, the cache the others."""

BEAM_TOKENS = 8
"""New tokens of a proof of beams, which must change places in the cache to show that it follows."""

ROUNDING = {torch.float32: 2e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference of logits that counts as rounding, as a share of their spread. Measured on 125 tiny families:
right ways differ by at most 1e-5 in float32 and 3e-2 in bfloat16, wrong ones by 4e-2 and more."""


@dataclass(frozen=True)
class Way:
    """How rows are continued.

    rows: which may share a batch: any, those of equal length, or none. cache: of fixed size, growing, or none, where
    everything is computed anew for each token.
    """

    rows: Literal["any", "equal", "one"]
    cache: Literal["fixed", "growing", "none"]

    def __str__(self) -> str:
        rows = {"any": "in padded batches", "equal": "in batches of equal length", "one": "one by one"}[self.rows]
        cache = {"fixed": "a cache of fixed size", "growing": "a growing cache", "none": "no cache"}[self.cache]
        return f"{rows} with {cache}"


WAYS = (
    Way("any", "fixed"),
    Way("any", "growing"),
    Way("equal", "fixed"),
    Way("equal", "growing"),
    Way("one", "growing"),
    Way("any", "none"),
    Way("equal", "none"),
    Way("one", "none"),
)
"""From the fastest to the one that is right by definition."""


class Continuer:
    """Continues rows of one model in the way that its proofs have left.

    Args:
        model: a causal LM (transformers, possibly wrapped by PEFT).
        device: where the model computes.
        pad: the token that fills up rows; it is masked, so that any one of the embedding does.
        new_tokens: most new tokens of a row.
        num_beams: beams of each row.
    """

    def __init__(self, model: torch.nn.Module, *, device: torch.device, pad: int, new_tokens: int, num_beams: int = 1):
        self.model, self.device, self.pad = model, device, pad
        self.new_tokens, self.num_beams = new_tokens, num_beams
        self.base: Any = getattr(model, "get_base_model", lambda: model)()
        self.prefix_length = prefix_length(model)
        accepted = inspect.signature(self.base.forward).parameters
        self.keeps_logits = "logits_to_keep" in accepted
        self.takes_positions = "position_ids" in accepted
        # Beams change places in the cache, and a trained prefix is a cache itself.
        fixed = num_beams == 1 and not self.prefix_length and getattr(self.base, "_can_compile_fullgraph", False)
        caches = {"growing"} | ({"fixed"} if fixed else set()) | (set() if self.prefix_length else {"none"})
        self.ways = [way for way in WAYS if way.cache in caches]

    @property
    def way(self) -> Way:
        """How rows are continued."""
        return self.ways[0]

    def settle(self, batches: Callable[[], Sequence[Sequence[Sequence[int]]]]) -> None:
        """Take the first way, from the present one on, that gives what plain rows give; the last needs no proof.

        batches: gives the rows to prove the present way on. Raises what `generate` raises where memory runs out.
        """
        failed, fault = self.way, None
        while len(self.ways) > 1 and (found := self._fault(batches())) is not None:
            fault = fault or found
            self.ways.pop(0)
        if fault is not None:
            name = type(self.base).__name__
            logger.warning("%s: %s, %s; prompts are continued %s", name, failed, fault, self.way)

    def generate(
        self,
        rows: Sequence[Sequence[int]],
        ends: Callable[[int], Sequence[StoppingCriteria]] | None = None,
        **settings: Any,
    ) -> tuple[Any, int]:
        """What `generate` gives for a batch of rows, and how many tokens stand before the new ones.

        `ends` gives what else ends a row, for that number. The model's own generation config is set aside: transformers
        would fill from it whatever `settings` leaves open.
        """
        width = max(len(row) for row in rows)
        input_ids = torch.full((len(rows), width), self.pad)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            input_ids[i, width - len(row) :] = torch.tensor(row)
            attention_mask[i, width - len(row) :] = 1
        config = GenerationConfig(
            **{"max_new_tokens": self.new_tokens, "num_beams": self.num_beams, "do_sample": False, **settings},
            pad_token_id=self.pad,
            use_cache=self.way.cache != "none",
            disable_compile=True,
        )
        arguments: dict[str, Any] = {}
        if self.prefix_length:
            # PEFT's own `generate` drops the trained prefix under transformers 5: hand it over as a filled cache, and
            # stand in for it with tokens that are counted but never fed.
            stand_ins = (self.prefix_length, 0)
            input_ids = torch.nn.functional.pad(input_ids, stand_ins, value=self.pad)
            attention_mask = torch.nn.functional.pad(attention_mask, stand_ins, value=1)
            arguments[CACHE] = self._prefix(len(rows) * config.num_beams)
        elif self.way.cache == "fixed":
            # A growing cache is copied whole at every token, which takes as long as a batch's forward pass on a CPU.
            text_config = self.base.config.get_text_config(decoder=True)
            arguments[CACHE] = StaticCache(config=text_config, max_cache_len=width + config.max_new_tokens)
        if ends is not None:
            arguments["stopping_criteria"] = StoppingCriteriaList(ends(input_ids.shape[1]))
        with _own_settings_aside(self.base):
            output = self.base.generate(
                input_ids=input_ids.to(self.device),
                attention_mask=attention_mask.to(self.device),
                generation_config=config,
                **arguments,
            )
        return output, input_ids.shape[1]

    def _fault(self, batches: Sequence[Sequence[Sequence[int]]]) -> str | None:
        """What is wrong with the present way, or None."""
        rounding = ROUNDING.get(self.base.dtype, ROUNDING[torch.bfloat16])
        try:
            for rows in batches:
                if not (off := self._distance(rows)) <= rounding:
                    return f"logits are off by {off:.2g} of their spread"
                if self.num_beams > 1 and not (off := self._beam_distance(rows)) <= rounding:
                    return f"the log-probability of beams is off by {off:.2g} per token"
        except Exception as error:
            if should_reduce_batch_size(error):
                raise
            return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" ...")
        return None

    def _distance(self, rows: Sequence[Sequence[int]]) -> float:
        """How far logits are off, as a share of their spread: the worst row's second largest of three new tokens.

        At a single token a router of experts may fall to the other side of a tie.
        """
        count = min(PROOF_TOKENS, self.new_tokens)
        rows = [self._stretched(row, count) for row in rows]
        made, start = self.generate(
            rows, max_new_tokens=count, num_beams=1, output_logits=True, return_dict_in_generate=True
        )
        worst = 0.0
        for i, row in enumerate(rows):
            plain = self._plain([*row, *made.sequences[i, start:].tolist()], count)
            known = plain.isfinite().all(0)
            off = torch.stack([logits[i].cpu() for logits in made.logits])[:, known] - plain[:, known]
            shares = (off.std(-1) / plain[:, known].std(-1)).nan_to_num(0.0).sort().values
            worst = max(worst, shares[-2 if count > 2 else -1].item())
        return worst

    def _beam_distance(self, rows: Sequence[Sequence[int]]) -> float:
        """How far the mean log-probability that a row's best beam claims is off, at the worst row."""
        count = min(BEAM_TOKENS, self.new_tokens)
        rows = [self._stretched(row, count) for row in rows]
        settings = {"max_new_tokens": count, "output_scores": True, "return_dict_in_generate": True}
        made, start = self.generate(rows, **settings)
        worst = 0.0
        for row, new, claimed in zip(rows, made.sequences[:, start:].cpu(), made.sequences_scores, strict=True):
            logprobs = self._plain([*row, *new.tolist()], count).log_softmax(-1)
            worst = max(worst, abs(logprobs.gather(1, new[:, None]).mean().item() - claimed.item()))
        return worst

    def _stretched(self, row: Sequence[int], count: int) -> list[int]:
        """A row so long that it ends with `count` more tokens where the longest answer ends."""
        return list(itertools.islice(itertools.cycle(row), len(row) + self.new_tokens - count))

    def _plain(self, tokens: list[int], count: int) -> Tensor:
        """[count, V] float32 logits of the last `count` tokens of a row fed alone, after a trained prefix if any."""
        arguments: dict[str, Any] = {"input_ids": torch.tensor([tokens[:-1]], device=self.device), "use_cache": False}
        if self.keeps_logits:
            arguments["logits_to_keep"] = count
        if self.prefix_length:
            arguments |= {CACHE: self._prefix(1), "use_cache": True}
            if self.takes_positions:
                places = torch.arange(len(tokens) - 1, device=self.device)[None]
                arguments["position_ids"] = places + self.prefix_length
        return self.base(**arguments).logits[0, -count:].float().cpu()

    def _prefix(self, rows: int) -> Any:
        return self.model.get_prompt(rows)  # type: ignore[operator]


@contextmanager
def _own_settings_aside(model: Any) -> Iterator[None]:
    """The model without its generation config for a while."""
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
