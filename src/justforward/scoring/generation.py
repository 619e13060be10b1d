"""Batched generation: prompts sorted by length, padded on the left, stopped at the task's end-of-answer token."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import GenerationConfig, StaticCache

from justforward.optim.distribution.shards import is_sharded
from justforward.scoring.engine import TOKEN_BUDGET, prefix_length

logger = logging.getLogger(__name__)

KEPT_TOKENS = {"cpu": 4 * TOKEN_BUDGET["cpu"], "cuda": 2 * TOKEN_BUDGET["cuda"]}
"""Default rows x (prompt + new tokens) of a batch, by device type. More than are scored at once: a token that is kept
takes less memory than one that is computed, and each further batch costs as many passes as there are new tokens."""


@dataclass(frozen=True)
class GenerationSettings:
    """How continuations are drawn: greedy, `num_beams` > 1, or `sampling` with temperature, top_k and top_p.

    eos_token: generation stops at the last token of this text, or at the model's own end of sequence.
    """

    max_new_tokens: int = 50
    eos_token: str = "\n"
    sampling: bool = False
    temperature: float = 1.0
    num_beams: int = 1
    top_k: int | None = None
    top_p: float = 0.95


class Generator:
    """Continues token rows with one model; `token_budget` bounds rows x (prompt + new tokens) of a batch.

    device: where the model computes; None for where its weights are.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        settings: GenerationSettings,
        *,
        token_budget: int | None = None,
        device: torch.device | None = None,
    ):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.device = device or next(model.parameters()).device
        self.token_budget = token_budget or KEPT_TOKENS.get(self.device.type, KEPT_TOKENS["cuda"])
        self.halved = False
        self.prefix_length = prefix_length(model)
        stop = tokenizer.encode(settings.eos_token, add_special_tokens=False)
        if not stop:
            raise ValueError(f"--eos_token {settings.eos_token!r} is no token of this model")
        self.stops = [stop[-1]] + ([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])
        self.pad: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.stops[0]

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], progress: Callable[[int], None] | None = None) -> list[str]:
        """One continuation per prompt, stripped, in the order given; `progress` is told each batch's size."""
        texts = [""] * len(prompts)
        todo = deque(self._batches(prompts))
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
            if self.halved or len(prompts) < 2 or is_sharded(self.model) or not should_reduce_batch_size(error):
                raise
        self.halved, self.token_budget = True, max(1, self.token_budget // 2)
        logger.warning("out of memory generating from %d prompts at once: they are taken in halves", len(prompts))
        return None

    def _batches(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        batches: list[list[int]] = []
        rows_per_prompt = self.settings.num_beams
        for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i])):
            longest = len(prompts[batches[-1][0]]) + self.settings.max_new_tokens if batches else 0
            if batches and (len(batches[-1]) + 1) * rows_per_prompt * longest <= self.token_budget:
                batches[-1].append(i)
            else:
                batches.append([i])
        return batches

    def _generate(self, prompts: list[Sequence[int]]) -> list[str]:
        width = max(len(p) for p in prompts)
        input_ids = torch.full((len(prompts), width), self.pad)
        attention_mask = torch.zeros((len(prompts), width), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
            attention_mask[row, width - len(prompt) :] = 1
        output = self._continue(input_ids.to(self.device), attention_mask.to(self.device))
        decoded = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return [text.strip() for text in decoded]

    def _continue(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, N] prompts -> [B, M] new tokens."""
        model: Any = self.model
        arguments: dict = {"generation_config": self._config()}
        if self.prefix_length:
            # PEFT's own `generate` drops the trained prefix under transformers 5: hand it over as a filled cache, and
            # stand in for it with tokens that are counted but never fed.
            model, peft = model.get_base_model(), model
            stand_ins = (self.prefix_length, 0)
            input_ids = torch.nn.functional.pad(input_ids, stand_ins, value=self.pad)
            attention_mask = torch.nn.functional.pad(attention_mask, stand_ins, value=1)
            arguments["cache"] = peft.get_prompt(len(input_ids) * self.settings.num_beams)
        elif self.settings.num_beams == 1 and getattr(self.model, "_can_compile_fullgraph", False):
            # A growing cache is copied whole at every token, which takes as long as a batch's forward pass on a CPU.
            length = input_ids.shape[1] + self.settings.max_new_tokens
            config = self.model.config.get_text_config(decoder=True)  # type: ignore[union-attr]
            arguments["cache"] = StaticCache(config=config, max_cache_len=length)
        output = model.generate(input_ids=input_ids, attention_mask=attention_mask, **arguments)
        return output[:, input_ids.shape[1] :]

    def _config(self) -> GenerationConfig:
        s = self.settings
        sampling = {"temperature": s.temperature, "top_k": s.top_k or 0, "top_p": s.top_p} if s.sampling else {}
        return GenerationConfig(
            max_new_tokens=s.max_new_tokens,
            do_sample=s.sampling,
            num_beams=s.num_beams,
            eos_token_id=self.stops,
            pad_token_id=self.pad,
            use_cache=True,
            disable_compile=True,
            **sampling,
        )
