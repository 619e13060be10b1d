"""Saved models: whole ones without the adapter of an earlier run beside them."""

from __future__ import annotations

import logging
from pathlib import Path

from peft import PeftModel
from torch import nn

from justforward.models.loading import LoadedModel
from justforward.models.sources import ADAPTER, ADAPTER_FILES

logger = logging.getLogger(__name__)


def save(loaded: LoadedModel, folder: str | Path) -> None:
    """Save a model, or its adapter, with its tokenizer."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    drop_old_adapter(loaded.model, Path(folder))


def drop_old_adapter(model: nn.Module, folder: Path) -> None:
    """Where a whole model was saved, remove an adapter that an earlier run left: it would be put on the weights."""
    if not isinstance(model, PeftModel) and (folder / ADAPTER).exists():
        for name in ADAPTER_FILES:
            (folder / name).unlink(missing_ok=True)
        logger.warning(
            "%s: removed the adapter of an earlier run, which would be put on the weights saved there", folder
        )
