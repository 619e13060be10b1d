"""Runs a launch on the OpenMP threads that torch computes with.

A second set of threads would wait for the processor while torch's spin, which they do for a while after each of torch's
operations: measured, a third of a step. The entry points are libgomp's, whose interface is stable; LLVM's OpenMP has
them too.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from numba import cfunc, types

from justforward.noise import kernels

logger = logging.getLogger(__name__)


def run(table: np.ndarray, threads: int) -> bool:
    """Run every row of `table` on `threads` threads; False, with nothing done, where torch has no such OpenMP."""
    parallel = _parallel()
    if parallel is None:
        return False
    counted = np.empty(1 + table.size, np.uint64)
    counted[0], counted[1:] = len(table), table.ravel()
    parallel(_team().address, counted.ctypes.data, threads, 0)
    return True


@functools.cache
def _parallel() -> ctypes._NamedFuncPointer | None:
    """GOMP_parallel(function, its argument, threads, flags) of the OpenMP that torch is linked to."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        for name in ("omp_get_thread_num", "omp_get_num_threads"):
            llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        parallel = library.GOMP_parallel
    except (OSError, AttributeError):
        logger.info("torch has no OpenMP that noise can share: it is drawn on threads of its own")
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@functools.cache
def _team() -> Any:
    return cfunc(types.void(types.voidptr), cache=True)(kernels.on_team)
