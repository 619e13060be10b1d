"""MeZO: the memory-efficient zeroth-order optimiser (Malladi et al. 2023, Algorithm 1).

    z ~ N(0, I) from a seed
    g = (L(theta + eps z) - L(theta - eps z)) / (2 eps)      estimate(closure): two forward passes
    theta <- theta - lr (g z + weight_decay theta)           step()

Works in any PyTorch loop; `estimate` and `step` are apart so that gradient accumulation, schedulers and the Hugging
Face Trainer come for free: the same z serves all micro-batches of a step, and the scalars average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from justforward.optim.perturbation import CounterNoise, NoiseSource

Closure = Callable[[], "Tensor | float"]


class DivergenceError(RuntimeError):
    """Too many steps in a row had a loss that is not finite."""


@dataclass(frozen=True)
class Estimate:
    """What one pair of probes measured.

    loss: mean of the two losses; projected_grad: (plus - minus) / (2 eps), an estimate of z . grad L; plus, minus:
    the losses at theta + eps z and theta - eps z.
    """

    loss: float
    projected_grad: float
    plus: float
    minus: float


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
        noise: where z comes from; a `CounterNoise` or anything with its `add_`.
        max_skipped: a step whose loss is not finite is skipped; so many in a row raise DivergenceError.

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
        noise: NoiseSource | None = None,
        max_skipped: int = 20,
    ):
        if not lr >= 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        if not eps > 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be at least 0, got {weight_decay}")
        super().__init__(_trainable(params), {"lr": lr, "eps": eps, "weight_decay": weight_decay})
        for group in self.param_groups:
            if "param_names" not in group:
                raise ValueError("MeZO needs names, which seed the noise: pass model.named_parameters()")
        self.noise = noise if noise is not None else CounterNoise()
        self.max_skipped = max_skipped
        # Kept under one string key of `state`: it is saved, restored and copied like any optimiser's state.
        cast(Any, self.state)["mezo"] = {"step": 0, "seed": int(seed), "skipped": 0, "skipped_in_a_row": 0}
        self._pending = [0.0, 0.0, 0.0]  # sums of weight * plus, weight * minus, weight
        self.last: Estimate | None = None

    @property
    def _progress(self) -> dict[str, int]:
        return cast(Any, self.state)["mezo"]

    @property
    def steps_done(self) -> int:
        """Steps taken, skipped ones included: the step number of the next direction."""
        return self._progress["step"]

    @property
    def skipped(self) -> int:
        """Steps that were skipped because a loss was not finite."""
        return self._progress["skipped"]

    @torch.no_grad()
    def estimate(self, closure: Closure, weight: float = 1.0) -> Estimate:
        """Probe the loss on both sides of theta; `step()` will apply the result.

        Args:
            closure: evaluates the loss at the current weights, a float or a scalar tensor. It is called twice and
                must be deterministic: dropout off, the same batch.
            weight: weight of this loss among the estimates of the same step (the number of items it averages).

        Returns:
            The estimate. Weights are as they were (up to rounding of the probe) also when the closure raises.
        """
        # The groups' eps are one probe: theta + D z with D = diag(eps); the loss difference serves all groups.
        self._move(+1.0)
        offset = 1.0
        try:
            plus = closure()
            self._move(-2.0)
            offset = -1.0
            minus = closure()
        finally:
            self._move(-offset)
        # One transfer for both: no host synchronisation stands between the probes.
        both = torch.stack([torch.as_tensor(plus).detach(), torch.as_tensor(minus).detach()]).double().tolist()
        for i, value in enumerate((*both, 1.0)):
            self._pending[i] += weight * value
        return self._measured(*both)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float | None:  # type: ignore[override]
        """Apply the estimates made since the last step (with `closure`, estimate first); return the mean loss.

        Under torch.distributed the estimates of all ranks are averaged first: three numbers per step.

        Raises:
            RuntimeError: there is nothing to apply.
            DivergenceError: `max_skipped` steps in a row had a loss that is not finite.
        """
        if closure is not None:
            self.estimate(closure)
        plus, minus, weight = self._reduced()
        self._pending = [0.0, 0.0, 0.0]
        if weight == 0:
            raise RuntimeError("MeZO.step() has no estimate to apply: call estimate(closure) or step(closure)")
        self.last = self._measured(plus / weight, minus / weight)
        state = self._progress
        if math.isfinite(self.last.projected_grad):
            self._apply(self.last)
            state["skipped_in_a_row"] = 0
        else:
            self._skip(self.last)
        state["step"] += 1
        return self.last.loss

    def _measured(self, plus: float, minus: float) -> Estimate:
        eps = self.param_groups[0]["eps"]
        return Estimate(loss=(plus + minus) / 2, projected_grad=(plus - minus) / (2 * eps), plus=plus, minus=minus)

    def _reduced(self) -> list[float]:
        """Sums of weighted losses and weights, over all ranks where there are several."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self._pending
        device = self.param_groups[0]["params"][0].device
        sums = torch.tensor(self._pending, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(sums)
        return sums.tolist()

    def _apply(self, estimate: Estimate) -> None:
        scales, decays = [], []
        for group in self.param_groups:
            projected_grad = (estimate.plus - estimate.minus) / (2 * group["eps"])
            scales.append(-float(group["lr"]) * projected_grad)
            decays.append(float(group["lr"]) * group["weight_decay"])
        self._add(scales, decays)

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

    def _move(self, sign: float) -> None:
        self._add([sign * group["eps"] for group in self.param_groups], [0.0] * len(self.param_groups))

    def _add(self, scales: list[float], decays: list[float]) -> None:
        """One pass over all parameters: p <- p (1 - decay) + scale z, scale and decay given per group."""
        named, all_scales, all_decays = [], [], []
        for group, scale, decay in zip(self.param_groups, scales, decays, strict=True):
            named.extend((name, p.data) for name, p in zip(group["param_names"], group["params"], strict=True))
            all_scales.extend([scale] * len(group["params"]))
            all_decays.extend([decay] * len(group["params"]))
        state = self._progress
        self.noise.add_(named, seed=state["seed"], step=state["step"], sample=0, scales=all_scales, decays=all_decays)


def _trainable(params: Iterable[Any]) -> list[Any]:
    """Drop frozen parameters, and groups that are left empty (torch refuses both an empty group and no group)."""

    def keep(item: Any) -> bool:
        return (item[1] if isinstance(item, tuple) else item).requires_grad

    items = list(params)
    if items and isinstance(items[0], dict):
        groups = [{**group, "params": [p for p in group["params"] if keep(p)]} for group in items]
        found: list[Any] = [group for group in groups if group["params"]]
    else:
        found = [p for p in items if keep(p)]
    if not found:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    return found
