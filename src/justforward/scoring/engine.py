"""Runs a plan on a causal language model: token rows with spans in, log-probabilities out.

Differentiable when gradients are on. What a model cannot take (tree masks, a shared KV cache) is found out on
rows as long as those to come, by comparing with plain rows, and then left alone. A prefix-tuned model is its base
model continuing the trained keys and values, which is a KV cache like any other.
"""

from __future__ import annotations

import inspect
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from justforward.compat import CACHE
from justforward.models.residual import inputs_seen
from justforward.optim.directions.base import Owners
from justforward.optim.distribution.shards import is_sharded
from justforward.optim.probes.graphs import Graphs
from justforward.optim.scored_head import ScoredLinear, install
from justforward.scoring.continued import continued
from justforward.scoring.guide import Guide
from justforward.scoring.kept import KeptStates
from justforward.scoring.plan import Forward, Plan, make_plan, plan_alone, rounded
from justforward.scoring.positions import Kept, sent
from justforward.scoring.prompts import Row
from justforward.scoring.proof import Kind, Proofs

logger = logging.getLogger(__name__)

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
"""Default tokens per forward pass, padding included, by device type. Not measured anew on each machine: on an H100 a
token takes 4.6 us of 1.3 billion weights in passes of 4,000 and of 30,000, and 4.9 in those of 2,000."""

PAIR_TOKENS = {"cpu": 256, "cuda": 4096}
"""Most tokens of a forward pass at which doubling its batch is faster than a second pass, by device type; measured on
the CPU (bench/step.py), where activations of more tokens leave the cache. A GPU's time would allow any number, for a
pair draws noise once; its memory does not: a step is to take no more than inference does."""


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of the scored tokens of R rows.

    token_logprobs: [T] float32, row after row in the order the rows came in; lengths: [R] int64, tokens per row.
    """

    token_logprobs: Tensor
    lengths: Tensor

    def sums(self) -> Tensor:
        """[R] float32: log p(span | what is before it), the sum over the span's tokens."""
        numbers, count = torch.arange(len(self.lengths), device=self.lengths.device), len(self.token_logprobs)
        row = torch.repeat_interleave(numbers, self.lengths, output_size=count)  # a GPU would be asked for it
        total = torch.zeros(len(self.lengths), dtype=torch.float32, device=self.token_logprobs.device)
        return total.index_add(0, row, self.token_logprobs)

    def means(self) -> Tensor:
        """[R] float32: the length-normalised score, the mean over the span's tokens."""
        return self.sums() / self.lengths

    def by_row(self) -> list[list[float]]:
        """One list of token log-probabilities per row."""
        return [part.tolist() for part in self.token_logprobs.detach().cpu().split(self.lengths.tolist())]


class ScoringEngine:
    """Scores token rows with one model.

    Args:
        model: a causal LM (transformers, possibly wrapped by PEFT).
        token_budget: most tokens per forward pass, padding included; None takes the device's default.
        short_cuts: False feeds plain rows only (a reference for tests and benchmarks).
        device: where the model computes; None for where its weights are.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        token_budget: int | None = None,
        short_cuts: bool = True,
        device: torch.device | None = None,
    ):
        self.model = model
        self.device = device or next(model.parameters()).device
        self.token_budget = token_budget or TOKEN_BUDGET.get(self.device.type, TOKEN_BUDGET["cuda"])
        config = model.config.get_text_config()  # type: ignore[union-attr]
        self.caller = model
        """What is called: `model`, or what wraps it to run it on several processes."""
        self.owners: Owners | None = None
        """Who is told whose each sequence is, where rows have owners."""
        self.kept: KeptStates | None = None
        """What frozen blocks give for some rows; passes over these start behind them."""
        self.guide: Guide | None = None
        """Who is shown what passes compute on their way."""
        self.graphs: Graphs | None = None
        """Where passes of a training's probes are recorded."""
        self.halved = False
        """Whether memory has run out once, and the token budget been halved."""
        self.one_forward = False
        """Plan every batch as one forward of plain rows: processes that share a model must call it equally often."""
        base = getattr(model, "get_base_model", lambda: model)()
        self.prefix_length = prefix_length(model)
        self.position_offset = self.prefix_length
        accepts = inspect.signature(base.forward).parameters
        self.keeps_logits = "logits_to_keep" in accepts
        self.takes_positions = "position_ids" in accepts
        self.head = install(model.get_output_embeddings())  # type: ignore[operator]
        flash = "flash" in (getattr(config, "_attn_implementation", None) or "")
        can = short_cuts and self.takes_positions
        self.takes_masks, self.takes_caches = can and not flash, can and CACHE in accepts
        proofs = Proofs(
            self._measure, name=type(base).__name__, dtype=self._dtype(), widens=lambda: not is_sharded(model)
        )
        self.proofs = proofs if short_cuts else None

    @property
    def trees(self) -> bool | None:
        """Whether rows are packed into trees; None as long as that has not been tried."""
        return self.takes_masks and self._proven(lambda kind: kind.tree)

    @property
    def caches(self) -> bool | None:
        """Whether a common beginning of all rows is cached; None as long as that has not been tried."""
        return self.takes_caches and self._proven(lambda kind: kind.cache)

    def _proven(self, concerns: Callable[[Kind], bool]) -> bool | None:
        return None if self.proofs is None else self.proofs.found(concerns)

    def score(self, rows: Sequence[Row], progress: Callable[[int], None] | None = None) -> Scores:
        """Plan and run in one call."""
        return self.run(self.plan(rows), progress)

    def plan(self, rows: Sequence[Row], owners: Sequence[int] | None = None) -> Plan:
        """The least computation for `rows` that this model supports. Use it any number of times.

        owners: whose each row is; rows of different ones share no computation.
        """
        if self.one_forward:
            most = 1 << 62
            return make_plan(rows, token_budget=most, share_prefix=False, pack_trees=False, pass_tokens=most)
        # A cache is filled once per run and its gradient would have to flow through every batch.
        shares = self.takes_caches and not torch.is_grad_enabled() and owners is None
        # Behind kept states blocks have filled no cache.
        shares = shares and not (self.kept is not None and self.kept.hold(rows))
        caches = (True, False) if shares else (False,)
        trees = (True, False) if self.takes_masks else (False,)
        for share, pack in itertools.product(caches, trees):
            plan = make_plan(
                rows, token_budget=self.token_budget, share_prefix=share, pack_trees=pack, owners=owners,
                few_shapes=self.graphs is not None,
            )  # fmt: skip
            if self.proofs is None or self.proofs.hold(plan, rows, self.token_budget):
                return plan
        return plan_alone(rows)

    def run(
        self,
        plan: Plan,
        progress: Callable[[int], None] | None = None,
        *,
        normalise: bool = True,
        owners: Owners | None = None,
    ) -> Scores:
        """Run a plan; `progress` is told the number of rows' tokens scored after each forward pass.

        normalise=False gives logits in place of log-probabilities, and is cheaper: for rows whose normalisers cancel.
        owners: told whose each sequence is before each forward pass.
        """
        self.owners = owners
        try:
            (scores,) = self._run(plan, 1, progress, normalise)
        finally:
            self.owners = None
        return scores

    def run_copies(
        self, plan: Plan, copies: int, *, normalise: bool = True, owners: Owners | None = None
    ) -> tuple[Scores, ...]:
        """Run a plan on its batch so many times over, in the same passes: the scores of each copy.

        owners: told the number of each sequence's copy before each forward pass.
        """
        self.owners = owners
        try:
            return self._run(plan, copies, None, normalise)
        finally:
            self.owners = None

    def fits(self, plan: Plan) -> int:
        """How many copies of the batch one pass takes: within the token budget, and while that is the faster way."""
        most = min(2 * PAIR_TOKENS.get(self.device.type, PAIR_TOKENS["cuda"]), self.token_budget)
        return max(1, most // max(f.input_ids.size for f in plan.forwards)) if plan.batched and plan.forwards else 1

    def _run(
        self, plan: Plan, copies: int, progress: Callable[[int], None] | None, normalise: bool
    ) -> tuple[Scores, ...]:
        cache, cached = self._first_cache(plan.prefix, copies)
        values, order = [], []
        todo = deque(plan.forwards)
        while todo:
            forward = todo.popleft()
            value = self._try_forward(forward, cache, cached, copies, normalise)
            if value is None:
                todo.extendleft(reversed(forward.halves()))
                continue
            values.append(value)
            order.append(torch.from_numpy(forward.output))
            if progress is not None:
                progress(len(forward.output))
        lengths = sent(torch.from_numpy(plan.lengths), self.device)
        if not values:
            return (Scores(torch.zeros(0, device=self.device), lengths),) * copies
        ordered = torch.cat(values, dim=1)[:, sent(torch.argsort(torch.cat(order)), self.device)]
        return tuple(Scores(part, lengths) for part in ordered)

    def _try_forward(self, forward: Forward, *arguments: Any) -> Tensor | None:
        """One pass, or None, with the token budget halved, where memory ran out for the first time."""
        try:
            return self._forward(forward, *arguments)
        except Exception as error:
            if not should_reduce_batch_size(error):
                raise
            if is_sharded(self.caller):  # all ranks must make equally many passes
                logger.error("out of memory on a rank of a shared model: give a smaller batch, or more GPUs")
                raise
            if self.halved or len(forward.input_ids) < 2:
                raise
        self.halved, self.token_budget = True, max(1, self.token_budget // 2)
        logger.warning(
            "out of memory at %d tokens in one pass: the token budget is %d from here on (--token_budget)",
            forward.input_ids.size,
            self.token_budget,
        )
        return None

    def _forward(self, forward: Forward, cache: Any, cached: int, copies: int, normalise: bool) -> Tensor:
        """One pass over [B, N] tokens -> [copies, T] float32 log-probabilities of its scored tokens."""

        def tensor(array: np.ndarray) -> Tensor:
            value = torch.from_numpy(array)
            return sent(value if copies == 1 else value.repeat(copies, *[1] * (value.dim() - 1)), self.device)

        # A graph is of one shape: a few are to do for all batches.
        few_shapes = self.graphs is not None and self.owners is None
        kept = int(forward.keep.sum())
        keep = Kept.of(torch.from_numpy(forward.keep), self.device, copies, rounded(kept) if few_shapes else kept)
        target = sent(torch.from_numpy(forward.target), self.device)
        inputs: dict[str, Tensor] = {"input_ids": tensor(forward.input_ids)}
        # A doubled batch gives every position: tables of positions are otherwise looked up once for all rows. So does
        # one that is padded beyond its rows, which may be longer than a table.
        apart = copies > 1 or self.owners is not None or self.graphs is not None
        if self.takes_positions and (forward.mask is not None or cache is not None or apart):
            inputs["position_ids"] = tensor(forward.position_ids) + self.position_offset
        if forward.mask is not None:
            inputs["attention_mask"] = self._additive(tensor(forward.mask), cached)
        index = target
        guide = None if self.guide is None or copies > 1 else self.guide
        if guide is not None:
            guide.begin(keep)
        if not (normalise or self.head is None or torch.is_grad_enabled()):
            ids, places = np.unique(forward.target, return_inverse=True)
            ids = np.pad(ids, (0, rounded(len(ids)) - len(ids) if few_shapes else 0), mode="edge")
            inputs["wanted"], index = (sent(torch.from_numpy(array), self.device) for array in (ids, places))
        if self.owners is not None:
            owner = torch.from_numpy(forward.owner)
            if copies > 1:
                owner = torch.arange(copies).repeat_interleave(len(owner))
            owner = sent(owner, self.device)
            self.owners.tell(owner, keep if self.keeps_logits else torch.ones_like(keep), keep.shape[1])
        states = self.kept.of(forward, self.device) if self.kept is not None and cache is None else None
        if states is not None:
            inputs["states"] = states.repeat(copies, 1, 1)
        if self.graphs is None or cache is not None or guide is not None:
            with nullcontext() if guide is None else inputs_seen(guide.watched, guide.see):
                logits = self._logits(inputs, keep, cache)
        else:
            parts = {"keep": keep.as_subclass(Tensor), "index": keep.index}
            logits = self.graphs.call(self._of_parts, inputs | parts)
        logits = logits.float().view(copies, -1, logits.shape[-1])  # [copies, K, V]
        source = sent(torch.from_numpy(forward.source), self.device)
        picked = logits[:, source, index]
        if normalise:
            picked = picked - torch.logsumexp(logits, dim=-1)[:, source]
        if guide is not None:  # at last: a pass that runs out of memory is made again
            guide.end(logits[0], source, target, torch.from_numpy(forward.output), normalise=normalise)
        return picked

    def _logits(self, inputs: Mapping[str, Tensor], keep: Kept, cache: Any = None) -> Tensor:
        """[K, V], or with `wanted` among the inputs [K, U]: of the positions kept."""
        arguments: dict[str, Any] = {**inputs, "use_cache": cache is not None}
        wanted, states = arguments.pop("wanted", None), arguments.pop("states", None)
        if self.keeps_logits:
            arguments["logits_to_keep"] = keep
        if cache is not None:
            arguments[CACHE] = continued(cache, len(inputs["input_ids"]))
        with _wanting(self.head, wanted), self._starting(states):
            logits = self._call(**arguments).logits
        return logits if self.keeps_logits else logits[keep]

    def _of_parts(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """`_logits`, where all that it is a function of are plain tensors."""
        others = {name: t for name, t in inputs.items() if name not in ("keep", "index")}
        return self._logits(others, Kept.made(inputs["keep"], inputs["index"]))

    def _call(self, **arguments: Any) -> Any:
        # PEFT's own forward of a prefix-tuned model would put its prefix in again.
        caller: Any = self.model.get_base_model() if self.prefix_length else self.caller  # type: ignore[operator]
        return caller(**arguments)

    def _starting(self, states: Tensor | None) -> AbstractContextManager[None]:
        return nullcontext() if states is None or self.kept is None else self.kept.upper.starting(states)

    def _first_cache(self, prefix: tuple[int, ...], copies: int) -> tuple[Any, int]:
        """The KV cache, a row per copy, that all sequences continue, and its length: trained prefix, shared tokens."""
        cache: Any = self.model.get_prompt(copies) if self.prefix_length else None  # type: ignore[operator]
        if prefix:
            arguments: dict = {"input_ids": torch.tensor([prefix] * copies, device=self.device), "use_cache": True}
            if self.keeps_logits:
                arguments["logits_to_keep"] = 1
            if cache is not None:
                positions = torch.arange(len(prefix), device=self.device).expand(copies, -1)
                arguments |= {CACHE: cache, "position_ids": positions + self.position_offset}
            cache = getattr(self._call(**arguments), CACHE)
        return cache, self.prefix_length + len(prefix)

    def _additive(self, mask: Tensor, cached: int) -> Tensor:
        """[B, N, N] bool -> [B, 1, N, cached + N] additive mask; every token attends to all that is cached."""
        mask = torch.nn.functional.pad(mask, (cached, 0), value=True).to(self.device)
        additive = torch.zeros(mask.shape, dtype=self._dtype(), device=self.device)
        return additive.masked_fill_(~mask, torch.finfo(additive.dtype).min)[:, None]

    def _dtype(self) -> torch.dtype:
        """The dtype that the model computes in (adapters may be kept in a wider one)."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        weight = getattr(head, "weight", None)
        if weight is None or not weight.is_floating_point():
            weight = next(p for p in self.model.parameters() if p.is_floating_point())
        return weight.dtype

    @torch.no_grad()
    def _measure(self, plan: Plan) -> Tensor:
        with _evaluating(self.model):
            return self.run(plan).token_logprobs


def prefix_length(model: torch.nn.Module) -> int:
    """Number of trained positions before every row of a prefix-tuned model; 0 for any other."""
    config = getattr(model, "active_peft_config", None)
    if config is None or not config.is_prompt_learning:
        return 0
    if config.peft_type != "PREFIX_TUNING":
        raise ValueError(f"PEFT's {config.peft_type} is not supported: use prefix-tuning or LoRA")
    return config.num_virtual_tokens


@contextmanager
def _wanting(head: ScoredLinear | None, wanted: Tensor | None) -> Iterator[None]:
    """Have the head compute only the outputs that are wanted for a while."""
    if head is None:
        yield
        return
    head.wanted = wanted
    try:
        yield
    finally:
        head.wanted = None


@contextmanager
def _evaluating(model: torch.nn.Module):
    """Dropout off for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
