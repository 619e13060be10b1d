"""What 16-bit weights make of MeZO's probes and updates: the drift table.

Run: python -m bench.precision, or make exact. A million weights of standard deviation 0.03, eps = 1e-3, projected
gradients drawn from N(0, 1). `restore` is the rms by which a probe leaves a weight changed, per step; `cosine` is that
of the actual to the intended movement (float64), and `length` the ratio of their lengths, after 200 and 2,000 steps.
"""

from __future__ import annotations

import torch

from bench.common import report
from justforward.noise import backend, noise_key
from justforward.optim import MeZO

WEIGHTS, EPS, SD = 1_000_000, 1e-3, 0.03
STEPS = (200, 2000)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def gradients(count: int) -> list[float]:
    """The projected gradients of all runs."""
    return torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64).tolist()


def start(dtype: torch.dtype, count: int) -> torch.Tensor:
    """The weights before the first step."""
    return torch.randn(count, generator=torch.Generator().manual_seed(0)).mul_(SD).to(dtype)


def textbook(weights: torch.Tensor, z: torch.Tensor, grad: float, lr: float) -> torch.Tensor:
    """Algorithm 1 in place: +eps, -2 eps, +eps, then the update, all in the weights' dtype; the restored weights."""
    z = z.to(weights.dtype)
    weights.add_(z * EPS)
    weights.add_(z * (-2 * EPS))
    weights.add_(z * EPS)
    restored = weights.clone()
    weights.sub_(z * (lr * grad))
    return restored


def drift(dtype: torch.dtype, way: str, lr: float, steps: tuple[int, ...] = STEPS, count: int = WEIGHTS) -> dict:
    """One row of the table; `way` is "in place" or a rounding of MeZO."""
    weights = torch.nn.Parameter(start(dtype, count))
    first = weights.detach().double().clone()
    intended = torch.zeros_like(first)
    mezo = MeZO([("w", weights)], lr=lr, eps=EPS, rounding="nearest" if way == "in place" else way, probe="copy")
    z = torch.empty(count)
    squares, row = 0.0, {}
    for step, grad in enumerate(gradients(max(steps))):
        backend("cpu").fill_(z, noise_key(0, step, 0, "w"))
        with torch.no_grad():
            before = weights.detach().clone()
            if way == "in place":
                restored = textbook(weights.data, z, grad, lr)
            else:
                losses = iter((2 * EPS * grad, 0.0))
                mezo.estimate(lambda losses=losses: next(losses))
                restored = weights.detach().clone()
                mezo.step()
                assert mezo.last is not None
                grad = mezo.last.projected_grad
        squares += (restored.double() - before.double()).square().mean().item()
        intended.sub_(z.double(), alpha=lr * grad)
        if step + 1 in steps:
            moved = weights.detach().double() - first
            if way == "compensated" and dtype != torch.float32:
                moved += residual(weights, mezo)
            cosine = torch.nn.functional.cosine_similarity(moved, intended, dim=0).item()
            row[str(step + 1)] = {
                "cosine": round(cosine, 4),
                "length": round((moved.norm() / intended.norm()).item(), 3),
            }
    return {"restore_rms_per_step": (squares / max(steps)) ** 0.5, **row}


def residual(weights: torch.Tensor, mezo: MeZO) -> torch.Tensor:
    """What a compensated run keeps beside its weights, in their units: float32 master less weight."""
    kept = mezo.state_dict()["state"]["mezo"]["residuals"]["w"]
    value = weights.detach().float()
    if weights.dtype == torch.bfloat16:
        return ((value.view(torch.int32) + kept.int()).view(torch.float32) - value).double()
    normal = ((value.view(torch.int32) + kept.int()).view(torch.float32) - value).double()
    return torch.where(weights.detach().abs() < 2**-14, kept.double() * 2**-39, normal)


def main() -> None:
    """Print the table, one JSON line per row."""
    for name, dtype in DTYPES.items():
        ways = ["in place", "nearest"] + ([] if dtype == torch.float32 else ["stochastic", "compensated"])
        for way in ways:
            for lr in (1e-5, 1e-6, 1e-7):
                report("drift", dtype=name, way=way, lr=lr, **drift(dtype, way, lr))


if __name__ == "__main__":
    main()
