"""MeZO: the memory-efficient zeroth-order optimiser (Malladi et al. 2023, Algorithm 1).

    z ~ N(0, I) from a seed
    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps)      estimate(closure): two forward passes
    theta <- theta - lr (g z + weight_decay theta)           step()

Works in any PyTorch loop; `estimate` and `step` are apart so that gradient accumulation, schedulers and the Hugging
Face Trainer come for free: the same z serves all micro-batches of a step, and the scalars average.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor

from justforward.noise import ROUNDING_VERSION
from justforward.optim.directions.base import Direction, Directions, NoiseSource, Place
from justforward.optim.directions.dense import CounterNoise
from justforward.optim.distribution.ranks import Ranks
from justforward.optim.given import check_numbers, check_probes, named, trainable
from justforward.optim.log import TrajectoryWriter
from justforward.optim.probes.choose import choose_probe
from justforward.optim.probes.closures import Closure, Copies, PairedClosure, Shares
from justforward.optim.probes.graphs import Graphs
from justforward.optim.probes.just_in_time import JustInTimeProbe
from justforward.optim.probes.several import divided, one_sided
from justforward.optim.rules.base import Rule
from justforward.optim.rules.estimate import Estimate, make_estimate, over_second_moment
from justforward.optim.rules.stateless import SGD
from justforward.optim.update import Move, Moved, Update, check_update, moves, state_bytes


class DivergenceError(RuntimeError):
    """Too many steps in a row had a loss that is not finite."""


class MeZO(torch.optim.Optimizer):
    """Memory-efficient zeroth-order SGD: two forward passes a step, no gradients, no state.

    Args:
        params: named parameters, `model.named_parameters()`, or parameter groups of them. Names seed the noise, so
            they must stay the same between runs that are to be compared or resumed. Parameters that do not require
            gradients are left alone.
        lr: learning rate, > 0 (paper, OPT-13B: 1e-6 to 1e-7 for all parameters, 1e-4 for LoRA, 1e-2 for prefixes).
        eps: size of the probe, > 0 (paper: 1e-3 for all parameters, 1e-2 for LoRA, 1e-1 for prefixes).
        weight_decay: decoupled from the estimate: theta <- theta - lr weight_decay theta.
        seed: seed of all directions; with the log of projected gradients it is the whole run.
        samples: directions per step (n-SPSA): twice as many forward passes, a less noisy step.
        sides: 2 probes theta + eps z and theta - eps z for every direction; 1 probes theta once and theta + eps z for
            every direction, `samples` + 1 forward passes.
        split: every direction probes its own share of the batch, all in the same two forward passes: `samples`
            directions cost no more than one. `estimate` needs the shares.
        shaping: how the losses of a step become numbers to difference: "none"; "rank", their centred ranks in
            [-1/2, 1/2]; "zscore", in units of their standard deviation from their mean; "deviation", over their
            standard deviation; "spread": projected gradients over their root mean square; "second_moment": over the
            root of their mean square so far. All but
            "none" make the step independent of the loss's scale, and need another learning rate.
        model: the module that owns the parameters. With it, weights of any size and dtype are probed exactly.
        probe: "auto", "paired", "just_in_time", "copy" or "in_place"; see `justforward.optim.probes.choose`.
        rounding: how updates of 16-bit weights are rounded: "stochastic" (unbiased, no memory), "nearest" (loses most
            of what is smaller than half a unit in the last place) or "compensated" (what is lost is kept, 2 bytes per
            weight: weight and residual are a float32 master). float32 weights are rounded to nearest.
        noise: where z comes from: one of `justforward.optim.directions`, or anything with `CounterNoise`'s `add_`.
        rule: what is made of the estimates: one of `justforward.optim.rules`; None for SGD. Other rules, and directions
            other than `CounterNoise`, take weights that ranks do not share.
        clip: projected gradients beyond this are cut to it (directional derivative clipping, QZO, arXiv 2505.13430).
        max_skipped: a step whose loss is not finite is skipped; so many in a row raise DivergenceError.
        direction_groups: under torch.distributed, into how many groups the ranks are split; each group probes its
            share of the directions, and the ranks of a group average their losses. At most `samples`.
        check_every: under torch.distributed, after so many steps the ranks compare checksums of their weights, and
            RankError names one that differs; 0 never does. Sharded weights are not compared.
        graphs: where passes of the probes are recorded as CUDA graphs; see `justforward.optim.probes.graphs`.

    Example:
            optimizer = MeZO(model.named_parameters(), lr=1e-6, eps=1e-3)
            for batch in batches:
                loss = optimizer.step(lambda: loss_function(model, batch))
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        seed: int = 0,
        samples: int = 1,
        sides: int = 2,
        split: bool = False,
        shaping: str = "none",
        model: torch.nn.Module | None = None,
        probe: str = "auto",
        rounding: str = "stochastic",
        noise: NoiseSource | None = None,
        rule: Rule | None = None,
        clip: float | None = None,
        max_skipped: int = 20,
        direction_groups: int = 1,
        check_every: int = 0,
        graphs: Graphs | None = None,
    ):
        check_numbers(lr=lr, eps=eps, weight_decay=weight_decay, rounding=rounding, clip=clip)
        check_probes(samples, sides, shaping, split=split, direction_groups=direction_groups)
        super().__init__(trainable(params), {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            if "param_names" not in group:
                raise ValueError("MeZO needs names, which seed the noise: pass model.named_parameters()")
        self.noise = noise if noise is not None else CounterNoise()
        self.rule = rule if rule is not None else SGD()
        pairs = [pair for group in self.param_groups for pair in named(group)]
        self.probe = choose_probe(probe, model, pairs, self.noise)
        self.graphs = graphs
        if isinstance(self.probe, JustInTimeProbe):
            self.probe.modules.graphs = graphs
        check_update(pairs, self.noise, self.rule, self.probe.name)
        self.rounding = rounding if isinstance(self.noise, Directions) else "nearest"
        self.samples, self.sides, self.split, self.shaping = samples, sides, split, shaping
        self.clip, self.max_skipped = clip, max_skipped
        self.direction_groups, self.check_every = direction_groups, check_every
        # Kept under one string key of `state`: it is saved, restored and copied like any optimiser's state.
        cast(Any, self.state)["mezo"] = {
            "step": 0,
            "seed": int(seed),
            "skipped": 0,
            "skipped_in_a_row": 0,
            "zero": 0,
        }
        if self.rounding == "compensated":
            halves = [(name, p) for name, p in pairs if p.element_size() == 2]
            self._progress["residuals"] = {name: torch.zeros_like(p, dtype=torch.int16) for name, p in halves}
        self.trajectory: TrajectoryWriter | None = None
        self._clear()
        self.last: Estimate | None = None

    @property
    def _progress(self) -> dict[str, Any]:
        return cast(Any, self.state)["mezo"]

    @property
    def state_bytes(self) -> int:
        """Bytes kept from step to step beside the weights."""
        pairs = [pair for group in self.param_groups for pair in named(group)]
        residuals = sum(2 * residual.numel() for residual in self._progress.get("residuals", {}).values())
        return residuals + (state_bytes(pairs, self.noise, self.rule) if isinstance(self.noise, Directions) else 0)

    @property
    def forwards_per_step(self) -> int:
        """Forward passes over each batch of a step, of all ranks; the first step makes some more to check the probe."""
        if self.split:
            return 2
        return 2 * self.samples if self.sides == 2 else self.samples + self.direction_groups

    @property
    def steps_done(self) -> int:
        """Steps taken, skipped ones included: the step number of the next direction."""
        return self._progress["step"]

    @property
    def skipped(self) -> int:
        """Steps that were skipped because a loss was not finite."""
        return self._progress["skipped"]

    @property
    def zero_steps(self) -> int:
        """Steps that moved nothing because both probes of every direction measured the same."""
        return self._progress["zero"]

    @torch.no_grad()
    def estimate(
        self,
        closure: Closure,
        weight: float = 1.0,
        *,
        paired: PairedClosure | None = None,
        copies: Copies | None = None,
        shares: Shares | None = None,
    ) -> Estimate:
        """Probe the loss along the step's directions; `step()` will apply the result.

        Args:
            closure: evaluates the loss at the current weights, a float or a scalar tensor. It is called several times
                and must be deterministic: dropout off, the same batch.
            weight: weight of this loss among the estimates of the same step (the number of items it averages).
            paired: evaluates the closure's batch twice over in one forward: [2], the losses of the first and the second
                half of the doubled batch. Used by the probe "paired", where it measures what `closure` does.
            copies: evaluates the batch at several directions in one pass; used where directions are products of small
                parts, as those of low rank are.
            shares: the batch divided among the directions, which are `samples`; needed with `split`.

        Returns:
            The estimate, of the directions that this rank probes. Weights are as they were also when the closure
            raises: to the bit, but for the probe "in_place".
        """
        own = Ranks.current(self.direction_groups).directions(self.samples)
        directions = [self._direction(sample) for sample in own]
        with nullcontext() if self.graphs is None else self.graphs.used():
            if self.split:
                losses = divided(self.probe, directions, shares)
            elif self.sides == 1:
                losses = one_sided(self.probe, directions, closure, copies)
            else:
                losses = [loss for direction in directions for loss in self.probe.losses(direction, closure, paired)]
        # One transfer for all: no host synchronisation stands between the probes.
        values = torch.stack([torch.as_tensor(loss).detach() for loss in losses]).double().tolist()
        for place, i in enumerate(own):
            self._pending[2 * i] += weight * values[2 * place]
            self._pending[2 * i + 1] += weight * values[2 * place + 1]
        self._pending[-1] += weight
        return self._measured(values)

    def _direction(self, sample: int) -> Direction:
        # The groups' eps are one probe: theta + D z with D = diag(eps); the loss difference serves all groups.
        pairs = [(pair, group["eps"]) for group in self.param_groups for pair in named(group)]
        state = self._progress
        parameters, eps = [pair for pair, _ in pairs], [eps for _, eps in pairs]
        return Direction(parameters, eps, self.noise, seed=state["seed"], step=state["step"], sample=sample)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """Apply the estimates made since the last step (with `closure`, estimate first); return the mean loss.

        Under torch.distributed the estimates of all ranks are averaged first: 2 samples + 1 float32 per step.

        Raises:
            RuntimeError: there is nothing to apply.
            RankError: another rank does not answer, or holds other weights.
            DivergenceError: `max_skipped` steps in a row had a loss that is not finite.
        """
        if closure is not None:
            self.estimate(closure)
        ranks = Ranks.current(self.direction_groups)
        *sums, weight = ranks.summed(self._pending)
        self._clear()
        if weight == 0:
            raise RuntimeError("MeZO.step() has no estimate to apply: call estimate(closure) or step(closure)")
        self.last = self._measured([total / weight for total in sums])
        if self.trajectory is not None:
            # Before the update: a run that is killed here has made this step, and its replay applies it.
            self.trajectory.append(self.last.projected_grads)
        self._finish_step()
        if self.check_every and self.steps_done % self.check_every == 0:
            whole = [p for group in self.param_groups for p in group["params"] if not isinstance(p, DTensor)]
            ranks.check_equal(whole, self.steps_done)
        return self.last.loss

    @torch.no_grad()
    def apply_logged(self, projected_grads: Sequence[float]) -> None:
        """Make the next step as a trajectory log tells it, with the present learning rates; nothing is evaluated."""
        self.last = Estimate(((math.nan, math.nan),) * self.samples, tuple(projected_grads))
        self._finish_step()

    def rewind(self) -> None:
        """Go back to before the first step (the weights are the caller's to put back)."""
        self._progress.update(step=0, skipped=0, skipped_in_a_row=0, zero=0)
        for residual in self._progress.get("residuals", {}).values():
            residual.zero_()
        for name in ("kept", "history", "second_moment", "directions"):
            self._progress.pop(name, None)
        if isinstance(self.noise, Directions):
            self.noise.load_state({})
        self._clear()

    def describe(self) -> dict[str, Any]:
        """What pins a run of this optimiser, as JSON values, for the header of a trajectory log."""
        return {
            "samples": self.samples,
            "seed": self._progress["seed"],
            "shaping": self.shaping,
            "noise": self.noise.version,
            "rounding": f"{self.rounding} {ROUNDING_VERSION}",
            **self._method(),
            "groups": [{k: group[k] for k in ("eps", "weight_decay")} for group in self.param_groups],
            "parameters": [
                [name, list(p.shape), str(p.dtype).removeprefix("torch."), i]
                for i, group in enumerate(self.param_groups)
                for name, p in named(group)
            ],
        }

    def _method(self) -> dict[str, Any]:
        """What of the header a run of plain MeZO does not have."""
        found: dict[str, Any] = {} if self.sides == 2 else {"sides": self.sides}
        if self.split:
            found["split"] = True
        if self.clip is not None:
            found["clip"] = self.clip
        if isinstance(self.noise, Directions) and not isinstance(self.noise, CounterNoise):
            found["directions"] = {"name": self.noise.name, **self.noise.describe()}
        if not isinstance(self.rule, SGD):
            found["rule"] = {"name": self.rule.name, **self.rule.describe()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimiser's; directions that keep something take it from there."""
        super().load_state_dict(state_dict)
        if isinstance(self.noise, Directions) and "directions" in self._progress:
            self.noise.load_state(self._progress["directions"])

    def _finish_step(self) -> None:
        assert self.last is not None
        if all(math.isfinite(g) for g in self.last.projected_grads):
            self._apply(self.last)
        else:
            self._skip(self.last)
        self._progress["step"] += 1

    def _clear(self) -> None:
        self._pending = [0.0] * (2 * self.samples + 1)  # sums of weight * loss, per probe, and of weight

    def _measured(self, values: list[float]) -> Estimate:
        eps = self.param_groups[0]["eps"]
        return make_estimate(values, eps=eps, shaping=self.shaping, sides=self.sides, clip=self.clip)

    def _apply(self, measured: Estimate) -> None:
        progress = self._progress
        progress["skipped_in_a_row"] = 0
        progress["zero"] += not any(measured.projected_grads)
        grads = measured.projected_grads
        if self.shaping == "second_moment":
            grads = over_second_moment(progress.setdefault("second_moment", {}), grads)
        if isinstance(self.noise, Directions) and not self._is_plain:
            self._update(self.noise, grads)
            return
        for move in moves(self.param_groups, grads):
            self._add(move)

    @property
    def _is_plain(self) -> bool:
        """Whether a step is one fused pass of noise over the weights."""
        return isinstance(self.rule, SGD) and isinstance(self.noise, CounterNoise)

    def _update(self, directions: Directions, grads: Sequence[float]) -> None:
        """A step of other directions, or of a rule that keeps something."""
        progress = self._progress
        history = progress.setdefault("history", [])
        history.append((progress["step"], tuple(grads)))
        del history[: -self.rule.window]
        groups, eps = self.param_groups, self.param_groups[0]["eps"]
        moved = [
            Moved(name, p, float(g["lr"]), float(g["lr"]) * g["weight_decay"], eps / g["eps"])
            for g in groups
            for name, p in named(g)
        ]
        update = Update(directions, self.rule, self.rounding, progress.setdefault("kept", {}))
        update.apply(moved, progress["seed"], history, progress.get("residuals", {}))
        directions.learn([(one.name, one.p) for one in moved], Place(progress["seed"], progress["step"], 0), grads)
        progress["directions"] = directions.state()

    def _skip(self, estimate: Estimate) -> None:
        state = self._progress
        state["skipped"] += 1
        state["skipped_in_a_row"] += 1
        if state["skipped_in_a_row"] >= self.max_skipped:
            raise DivergenceError(
                f"the loss was not finite in {state['skipped_in_a_row']} steps in a row (last: {estimate.plus} and "
                f"{estimate.minus}): training has diverged; lower the learning rate (now "
                f"{self.param_groups[0]['lr']:g}) or eps (now {self.param_groups[0]['eps']:g})"
            )

    def _add(self, move: Move) -> None:
        """One pass over all parameters."""
        every, all_scales, all_decays = [], [], []
        for group, scale, decay in zip(self.param_groups, move.scales, move.decays, strict=True):
            pairs = named(group)
            every.extend(pairs)
            all_scales.extend([scale] * len(pairs))
            all_decays.extend([decay] * len(pairs))
        state = self._progress
        exact: dict[str, Any] = {}
        if self.rounding != "nearest":
            exact["rounding"] = self.rounding
        if self.rounding == "compensated":
            exact["residuals"] = [state["residuals"].get(name) for name, _ in every]
        self.noise.add_(
            every,
            seed=state["seed"],
            step=state["step"],
            sample=move.sample,
            scales=all_scales,
            decays=all_decays,
            **exact,
        )
