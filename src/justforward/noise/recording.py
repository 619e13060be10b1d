"""Launches that are recorded to be made again: their keys and scales stand where the device reads them.

A recorded launch has its arguments for good, and a direction has another key at every step. So inside `recording` a
backend takes both from a row of a table, which is written anew before each replay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

MOST = 1 << 13
"""Launches that a record has room for."""


class NotRecordable(ValueError):
    """What is computed cannot be recorded."""


class Launches:
    """The launches of a record.

    table: int64 [MOST, 2] on the device, a row for each: its key, and the bits of its scale; made: both, as recorded.
    """

    def __init__(self, device: torch.device | str):
        self.table = torch.zeros((MOST, 2), dtype=torch.int64, device=device)
        self.made: list[tuple[int, float]] = []

    def row(self, key: int, scale: float) -> torch.Tensor:
        """Int64 [2]: where the next launch finds its key and scale. Raises NotRecordable where they are too many."""
        if len(self.made) == MOST:
            raise NotRecordable(f"more than {MOST:,} launches")
        self.made.append((key, scale))
        return self.table[len(self.made) - 1]

    def write(self, rows: Sequence[tuple[int, float]]) -> None:
        """Keys of 64 bits and float32 scales for the next replay, in order; the device is not waited for."""
        values = np.zeros((len(rows), 2), np.int64)
        values[:, 0] = np.array([key for key, _ in rows], np.uint64).view(np.int64)
        values[:, 1] = np.array([scale for _, scale in rows], np.float32).view(np.int32)
        sent = torch.from_numpy(values)
        if self.table.is_cuda:
            sent = sent.pin_memory()
        self.table[: len(rows)].copy_(sent, non_blocking=True)


_current: Launches | None = None


@contextmanager
def recording(launches: Launches) -> Iterator[None]:
    """Inside, launches of noise are recorded there, from the first on."""
    global _current
    before, _current = _current, launches
    launches.made.clear()
    try:
        yield
    finally:
        _current = before


def current() -> Launches | None:
    """Where launches are recorded now; None: nowhere."""
    return _current
