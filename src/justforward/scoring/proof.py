"""Proves on a model that it honours a short cut: rows made to show an error are scored both ways, and must agree.

No list of families or of settings' names says what a model takes. A proof holds up to the lengths that it was made
with: what fails on long rows (a window of attention, positions that are scaled) is right on short ones.
"""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from justforward.compat import full_precision
from justforward.optim.float32 import HALVES, InFloat32
from justforward.scoring.plan import Plan, make_plan, plan_alone
from justforward.scoring.prompts import Row

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of a token's log-probability, in float32, at which a short cut is right. Over all families of
transformers (bench/families.py) the right ones are within 4e-5, and the wrong ones beyond 6e-2."""

ROUNDING = 4
"""In 16 bits a short cut may be so many times as far from the float32 scores as rows alone are (root mean square)."""

COMPARED = 64
"""Most tokens of a row that are compared, its last ones."""

POOL = 256
"""Rows from whose tokens others are made."""

UNMEASURED = 0.1
"""The same difference between both ways, in 16 bits, where a model cannot be run in float32."""


class Kind(NamedTuple):
    """What a forward pass asks of a model, beside a batch of padded sequences."""

    tree: bool
    cache: bool

    def __str__(self) -> str:
        return " and ".join(["tree masks"] * self.tree + ["a shared KV cache"] * self.cache) or "padded batches"


class Size(NamedTuple):
    """Up to which length: tokens in the cache; of the longest row, the cached ones included; fed as one sequence."""

    prefix: int
    depth: int
    width: int

    def covers(self, other: Size) -> bool:
        """Whether nothing of the other is longer."""
        return all(own >= given for own, given in zip(self, other, strict=True))

    def union(self, other: Size) -> Size:
        """The least that covers both."""
        return Size(*map(max, self, other))


def needs(plan: Plan, token_budget: int) -> dict[Kind, Size]:
    """The largest size of each kind in a plan. A plain row that no other fits beside is no short cut."""
    found: dict[Kind, Size] = {}
    for forward in plan.forwards:
        kind = Kind(forward.mask is not None, bool(plan.prefix))
        width = max(sum(len(piece.fed) - piece.start for piece in pieces) for pieces in forward.pieces)
        if any(kind) or len(forward.input_ids) > 1 or 2 * width <= token_budget:
            size = Size(len(plan.prefix), int(forward.position_ids.max()) + 1, width)
            found[kind] = size.union(found.get(kind, size))
    return found


class Proofs:
    """What has been proven and disproven of one model.

    Args:
        run: a plan -> [T] log-probabilities, without gradients and dropout.
        name: of the model, for warnings.
        dtype: that the model computes in.
        widens: whether 16-bit weights can be widened on the way; those that processes share cannot.
    """

    def __init__(self, run: Callable[[Plan], Tensor], *, name: str, dtype: torch.dtype, widens: Callable[[], bool]):
        self.run, self.name, self.dtype, self.widens = run, name, dtype, widens
        self.proven: dict[Kind, list[Size]] = {}
        self.disproven: dict[Kind, list[Size]] = {}

    def hold(self, plan: Plan, rows: Sequence[Row], token_budget: int) -> bool:
        """Whether the model computes this plan of `rows` as it computes rows alone."""
        return all(self._holds(kind, size, rows, token_budget) for kind, size in needs(plan, token_budget).items())

    def found(self, concerns: Callable[[Kind], bool]) -> bool | None:
        """Whether any of these kinds has been proven, for whatever lengths; None where none has been tried."""
        if any(sizes for kind, sizes in self.proven.items() if concerns(kind)):
            return True
        return False if any(concerns(kind) for kind in self.disproven) else None

    def _holds(self, kind: Kind, size: Size, rows: Sequence[Row], token_budget: int) -> bool:
        proven = self.proven.setdefault(kind, [])
        if any(known.covers(size) for known in proven):
            return True
        if any(size.covers(known) for known in self.disproven.get(kind, ())):
            return False
        # As much as was ever needed at once, where rows can be made for it, so that proofs become rare.
        largest = size
        for known in proven:
            largest = largest.union(known)
        for tried in dict.fromkeys((largest, size)):
            trial = make_trial(kind, tried, rows, token_budget)
            if trial is None:
                continue
            verdict = self._verdict(trial)
            if verdict is None:
                return False
            (proven if verdict else self.disproven.setdefault(kind, [])).append(tried)
            return verdict
        return False

    def _verdict(self, trial: Trial) -> bool | None:
        """Whether both ways agree; None where the model gives no numbers to compare."""
        plain = self._alone(trial)
        known = plain.isfinite()
        if not known.any():
            return None
        try:
            short = self._together(trial)
        except Exception as error:  # whatever a model raises that is given what it does not know
            return self._refused(trial, f"does not take {trial.kind} ({error})")
        exact = self._exact(trial) if self.dtype in HALVES or plain.is_cuda else (plain, short)
        if exact is None:
            return self._within(trial, _root_mean_square((short - plain)[known]), UNMEASURED)
        if not self._within(trial, (exact[1] - exact[0])[known].abs().max().item(), TOLERANCE):
            return False
        rounding, error = (_root_mean_square((values - exact[0])[known]) for values in (plain, short))
        return self._within(trial, error, ROUNDING * rounding + TOLERANCE)

    def _exact(self, trial: Trial) -> tuple[Tensor, Tensor] | None:
        """The rows alone and together in float32; None where that is not possible."""
        if self.dtype in HALVES and not self.widens():
            return None
        try:
            with full_precision(), InFloat32() if self.dtype in HALVES else nullcontext():
                return self._alone(trial), self._together(trial)
        except Exception:  # such as kernels that know their own dtype only
            return None

    def _within(self, trial: Trial, difference: float, most: float) -> bool:
        if difference <= most:
            return True
        return self._refused(trial, f"gives other log-probabilities (by {difference:.2g}) with {trial.kind}")

    def _alone(self, trial: Trial) -> Tensor:
        plans = [plan_alone([trial.rows[i]]) for i in trial.compared]
        return torch.cat([self.run(plan) for plan in plans])

    def _together(self, trial: Trial) -> Tensor:
        parts = self.run(trial.plan).split(trial.plan.lengths.tolist())
        return torch.cat([parts[i] for i in trial.compared])

    def _refused(self, trial: Trial, reason: str) -> bool:
        if trial.kind not in self.disproven:
            depth = trial.size.depth
            said = " ".join(reason.split())
            logger.warning("%s %s on rows of %d tokens: rows are fed one by one", self.name, said, depth)
        return False


@dataclass(frozen=True)
class Trial:
    """Rows of a size, their plan of a kind, and which of them are compared with themselves alone."""

    kind: Kind
    size: Size
    rows: list[Row]
    plan: Plan
    compared: list[int]


def make_trial(kind: Kind, size: Size, rows: Sequence[Row], token_budget: int) -> Trial | None:
    """Rows that show whether a model honours a kind of pass; None where none of this size can be made.

    They begin as the longest of `rows` and go on with tokens of all. One sequence has the given size: a tree with long
    branches, so that much leaks from one to the next where its mask is not honoured. Others are shorter, to be padded.
    """
    longest = max(rows, key=lambda row: len(row.tokens)).tokens
    pool = sorted({token for row in rows[:POOL] for token in row.tokens})
    chance = random.Random(0)
    made: list[Row] = []
    compared: list[int] = []
    parts: list[int] = []
    for part in (1, 2, 8):
        depth = size.prefix + max(1, (size.depth - size.prefix) // part)
        base = list(itertools.islice(itertools.cycle(longest), depth))
        if part > 1:  # not a beginning of the longest
            start = min(max(1, size.prefix), depth)
            other = [token for token in pool if token not in base[start : start + 1]] or pool
            base[start:] = chance.choices(other, k=depth - start)
        trunk, fed = size.prefix, [base]
        if kind.tree:
            own = depth - size.prefix
            trunk = depth - max(1, min(own // 2, token_budget - own))
            fed = _branches(base, trunk, (size.width if part == 1 else 0) + size.prefix, pool, chance)
        # A leak runs from the first branch, in the tree's order, to the last.
        seen = [max(fed), *([min(fed)] if part == 1 and kind.tree else [])]
        for tokens in fed:
            if tokens in seen:
                compared.append(len(made))
            made.append(Row((*tokens, chance.choice(pool)), max(trunk + 1, len(tokens) + 1 - COMPARED)))
            parts.append(part)
    # Behind a cache rows share a tree that have no more in common: what is made as one sequence must stay one.
    options: dict = {"share_prefix": kind.cache, "pack_trees": kind.tree, "owners": parts}
    plan = make_plan(made, token_budget=token_budget, pass_tokens=1 << 62, **options)
    if kind.cache:  # two passes on one cache, which must leave it as it is: several rows first, then one
        cut = [reversed(one.halves()) if len(one.input_ids) > 1 else [one] for one in plan.forwards]
        plan = replace(plan, forwards=list(itertools.chain.from_iterable(cut)))
    reached = needs(plan, token_budget).get(kind)
    return Trial(kind, size, made, plan, compared) if reached is not None and reached.covers(size) else None


def _branches(base: list[int], trunk: int, tokens: int, pool: list[int], chance: random.Random) -> list[list[int]]:
    """`base` and rows that leave it behind `trunk` tokens or more, `tokens` in all: the first of them is as long."""
    rows, total = [base], len(base)
    starts = ((i, token) for i in range(trunk, len(base)) for token in chance.sample(pool, len(pool)))
    for i, token in starts:
        if len(rows) > 1 and total >= tokens:
            break
        if token != base[i]:
            more = len(base) - i if len(rows) == 1 else min(len(base) - i, tokens - total)
            rows.append([*base[:i], token, *chance.choices(pool, k=more - 1)])
            total += more
    return rows


def _root_mean_square(values: Tensor) -> float:
    return values.square().mean().sqrt().item()
