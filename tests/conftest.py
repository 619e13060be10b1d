"""Fixtures for all tests: the golden model, loaded once; no hub, no surprises from the environment."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tests run side by side: threads of one would spin on the cores of the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from support.golden import MODEL
from support.older import WARNINGS

from justforward.models.loading import LoadedModel, load


def pytest_configure(config: pytest.Config) -> None:
    """Let older libraries warn of what newer ones have mended."""
    for line in WARNINGS:
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose jobs are of several processes take minutes: they come first, or one worker ends with them alone."""
    items.sort(key=lambda item: "/e2e/" not in item.path.as_posix())


def pytest_collection_finish() -> None:
    """Every training ends with full collections: most of a short one's time, were they to visit what was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def _golden() -> LoadedModel:
    return load(MODEL)


@pytest.fixture
def golden(_golden: LoadedModel):
    """The golden tiny OPT; its weights are put back after the test."""
    saved = {n: p.detach().clone() for n, p in _golden.model.named_parameters()}
    yield _golden
    with torch.no_grad():
        for n, p in _golden.model.named_parameters():
            p.copy_(saved[n])
            p.requires_grad_(True)
    _golden.model.eval()
