"""What is read off the machine, and the short measurements."""

import itertools
import mmap
import os
import time

import pytest
import torch

from justforward import machine


def test_memory_is_that_of_the_system_or_of_the_container(tmp_path, monkeypatch):
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "LIMIT", limit)
    assert machine.main_memory() == installed
    for text, expected in (("max\n", installed), ("1048576\n", 1048576), (f"{2 * installed}\n", installed)):
        limit.write_text(text)
        assert machine.main_memory() == expected


def test_resident_memory_grows_with_what_is_written():
    before = machine.resident()
    with mmap.mmap(-1, 64 << 20) as block:  # new pages: what an allocator gives may have been resident before
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        assert machine.resident() - before > 50 << 20
    assert before > 50 << 20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_work_over_time(dtype, monkeypatch):
    """On a clock that goes a quarter of a second between two looks at it."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 4)
    assert machine.matmul_rate(dtype, width=64, seconds=0) == 2 * 1024 * 64 * 256 / 0.25
    assert machine.noise_rate(dtype, seconds=0) == 0.25 / (1 << 22)
