"""Zeroth-order optimisers. Need only torch: usable alone in any PyTorch loop.

`mezo` puts together a direction (`directions`), a probe of the losses along it (`probes`) and what is made of them
(`rules`); `methods` names the combinations, `log` is the file of a run, `distribution` what several processes do.

May import `launcher`, `noise` and `registry`. Start with `mezo`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from justforward.optim.directions.base import NoiseSource as NoiseSource
    from justforward.optim.directions.dense import CounterNoise as CounterNoise
    from justforward.optim.mezo import DivergenceError as DivergenceError
    from justforward.optim.mezo import MeZO as MeZO
    from justforward.optim.rules.estimate import Estimate as Estimate

# Imported when asked for: `methods` and `log` need no torch.
_EXPORTS = {
    "CounterNoise": "directions.dense",
    "DivergenceError": "mezo",
    "Estimate": "rules.estimate",
    "MeZO": "mezo",
    "NoiseSource": "directions.base",
}
__all__ = ["CounterNoise", "DivergenceError", "Estimate", "MeZO", "NoiseSource"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'justforward.optim' has no attribute '{name}'")
    return getattr(importlib.import_module(f"justforward.optim.{_EXPORTS[name]}"), name)
