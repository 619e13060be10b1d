"""justforward: fine-tune large language models with just forward passes (MeZO)."""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from justforward.optim import MeZO as MeZO
    from justforward.training.trainer import MeZOMixin as MeZOMixin
    from justforward.training.trainer import MeZOTrainer as MeZOTrainer
    from justforward.trajectory.replay import load as load

# Imported when asked for: `import justforward` alone stays light.
_EXPORTS = {
    "MeZO": "justforward.optim",
    "MeZOMixin": "justforward.training.trainer",
    "MeZOTrainer": "justforward.training.trainer",
    "load": "justforward.trajectory.replay",
}
__all__ = ["MeZO", "MeZOMixin", "MeZOTrainer", "load"]

# transformers imports torchao, and PEFT bitsandbytes, wherever they are installed, also for a run that quantises
# nothing, and these modules then warn of what they do without. A filter holds back their own warnings and no others
# below them.
for _name in ("torchao", "torch.utils._pytree", "bitsandbytes.backends.cpu.ops"):
    logging.getLogger(_name).addFilter(lambda record: record.levelno >= logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'justforward' has no attribute '{name}'")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
