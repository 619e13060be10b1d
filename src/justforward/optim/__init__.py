"""Zeroth-order optimisers. Need only torch: usable alone in any PyTorch loop.

`mezo` puts together a direction (`directions`), a probe of the losses along it (`probes`) and what is made of them
(`rules`); `log` is the file of a run, `distribution` what several processes do. May import `noise`. Start with `mezo`.
"""

from justforward.optim.directions.dense import CounterNoise, NoiseSource
from justforward.optim.mezo import DivergenceError, MeZO
from justforward.optim.rules.estimate import Estimate

__all__ = ["CounterNoise", "DivergenceError", "Estimate", "MeZO", "NoiseSource"]
