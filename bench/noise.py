"""One pass of noise over all parameters of an OPT-125m, against memory bandwidth and against the textbook.

Run: python -m bench.noise
"""

from __future__ import annotations

import torch

from bench.common import compare
from justforward.noise import DISTRIBUTIONS, backend, noise_key

HIDDEN, FFN, LAYERS, VOCABULARY, POSITIONS = 768, 3072, 12, 50272, 2050
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 1e-3


def opt_125m_shapes() -> list[tuple[int, ...]]:
    """The shapes of all 197 parameters: 125.2 million weights."""
    attention = [(HIDDEN, HIDDEN), (HIDDEN,)] * 4
    feed_forward = [(FFN, HIDDEN), (FFN,), (HIDDEN, FFN), (HIDDEN,)]
    norms = [(HIDDEN,)] * 4
    layers = (attention + feed_forward + norms) * LAYERS
    return [(VOCABULARY, HIDDEN), (POSITIONS, HIDDEN), *layers, (HIDDEN,), (HIDDEN,)]


def textbook(weights: list[torch.Tensor]) -> None:
    """What a MeZO loop is usually written as."""
    torch.manual_seed(0)
    for weight in weights:
        z = torch.normal(mean=0, std=1, size=weight.size(), device=weight.device, dtype=weight.dtype)
        weight.data = weight.data + 1 * z * SCALE


def main() -> None:
    """Print one line per dtype and distribution."""
    noise = backend("cpu")
    for dtype_name, dtype in DTYPES.items():
        weights = [torch.randn(shape).mul_(0.03).to(dtype) for shape in opt_125m_shapes()]
        others = [torch.zeros_like(weight) for weight in weights]
        keys = [noise_key(0, 0, 0, str(index)) for index in range(len(weights))]
        for distribution in DISTRIBUTIONS:
            compare(
                f"noise pass, OPT-125m, {dtype_name}, {distribution}",
                {
                    "justforward": lambda w=weights, k=keys, d=distribution: noise.add_(w, k, SCALE, 0.0, d),
                    "p.add_(q)": lambda w=weights, q=others: [p.add_(c) for p, c in zip(w, q, strict=True)],
                    "textbook": lambda w=weights: textbook(w),
                },
                parameters=sum(weight.numel() for weight in weights),
            )


if __name__ == "__main__":
    main()
