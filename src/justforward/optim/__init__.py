"""Zeroth-order optimisers. Needs only torch: usable alone in any PyTorch loop."""

from justforward.optim.mezo import DivergenceError, Estimate, MeZO
from justforward.optim.perturbation import CounterNoise, NoiseSource

__all__ = ["CounterNoise", "DivergenceError", "Estimate", "MeZO", "NoiseSource"]
