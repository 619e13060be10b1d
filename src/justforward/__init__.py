"""justforward: fine-tune large language models with just forward passes (MeZO)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from justforward.optim import MeZO as MeZO
    from justforward.replay import load as load
    from justforward.trainer import MeZOMixin as MeZOMixin
    from justforward.trainer import MeZOTrainer as MeZOTrainer

# Imported when asked for: `import justforward` alone stays light.
_EXPORTS = {
    "MeZO": "justforward.optim",
    "MeZOMixin": "justforward.trainer",
    "MeZOTrainer": "justforward.trainer",
    "load": "justforward.replay",
}
__all__ = ["MeZO", "MeZOMixin", "MeZOTrainer", "load"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'justforward' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
