"""MeZO as the paper writes it (Malladi et al. 2023, Algorithm 1): the plain reference of tests and benchmarks.

Noise from torch's global generator, four passes over the weights per step, a row per candidate, logits of the whole
vocabulary at every position. Nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def perturb(parameters: Sequence[nn.Parameter], seed: int, scale: float) -> None:
    """PerturbParameters: theta <- theta + scale * z, z ~ N(0, I) from the seed, in the weights' dtype."""
    torch.manual_seed(seed)
    for p in parameters:
        z = torch.normal(mean=0, std=1, size=p.size(), device=p.device, dtype=p.dtype)
        p.data = p.data + scale * z


@torch.no_grad()
def step(
    parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], *, lr: float, eps: float, seed: int
) -> tuple[float, float]:
    """One step; the losses at theta + eps z and theta - eps z."""
    perturb(parameters, seed, eps)
    plus = loss()
    perturb(parameters, seed, -2 * eps)
    minus = loss()
    perturb(parameters, seed, eps)
    projected_grad = ((plus - minus) / (2 * eps)).item()
    perturb(parameters, seed, -lr * projected_grad)
    return plus.item(), minus.item()


def classification_loss(
    model: nn.Module, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]]
) -> Tensor:
    """Mean cross-entropy of candidate 0 among all, each scored by the mean log-probability of its tokens."""
    rows = [[*prompt, *candidate] for prompt in prompts for candidate in candidates]
    width = max(len(row) for row in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    device = next(model.parameters()).device
    logprobs = torch.log_softmax(model(input_ids=ids.to(device)).logits.float(), dim=-1)  # [B K, N, V]
    scores = []
    for i, row in enumerate(rows):
        start = len(prompts[i // len(candidates)])
        positions = torch.arange(start - 1, len(row) - 1)
        scores.append(logprobs[i, positions, torch.tensor(row[start:])].mean())
    by_prompt = torch.stack(scores).view(len(prompts), len(candidates))
    return -torch.log_softmax(by_prompt, dim=-1)[:, 0].mean()
