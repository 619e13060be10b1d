"""Saved models."""

from __future__ import annotations

from pathlib import Path

from justforward.models.loading import LoadedModel


def save(loaded: LoadedModel, folder: str | Path) -> None:
    """Save a model, or its adapter, with its tokenizer."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
