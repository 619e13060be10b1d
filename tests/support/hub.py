"""A hub that answers without network."""

from __future__ import annotations

import sys
import types


def fake_hub(monkeypatch, load_dataset) -> None:
    """Let `datasets.load_dataset` be this function."""
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
