"""A stand-in for CUDA graphs on a CPU: what a function computes is taped, and replayed in the same memory.

As with a graph, what Python decides while it is taped is decided for good, and replays read inputs where they were.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from justforward.noise import backend
from justforward.noise.recording import current

_tapes: list["Tape"] = []


class Tape(TorchDispatchMode):
    """Every operation inside, to be made again."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], object]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view:
            # Where they are now: a parameter may be elsewhere when this is replayed.
            given, named = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (args, kwargs or {}))
            self.steps.append(lambda: _copied(made, func(*given, **named)))
        return made

    def replay(self) -> None:
        for step in self.steps:
            step()


def _copied(made: Any, again: Any) -> None:
    for to, value in zip(tree_leaves(made), tree_leaves(again), strict=True):
        if isinstance(to, Tensor) and to.data_ptr() != value.data_ptr():
            to.copy_(value)


def record(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """See `justforward.optim.probes.graphs.Record`."""
    with Tape() as tape:
        _tapes.append(tape)
        try:
            result = run()
        finally:
            _tapes.pop()
    return tape.replay, result


class TapedNoise:
    """The CPU's noise, whose launches take keys and scales from the table while they are recorded, as a GPU's do."""

    def __init__(self) -> None:
        self.plain = backend("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.plain, name)

    def perturb_many(self, outs: Any, tensors: Any, keys: Any, scale: Any, *more: Any, **named: Any) -> None:
        self._launch(
            lambda k, s: self.plain.perturb_many(outs, tensors, k, s, *more, **named), keys, _each(scale, keys)
        )

    def perturb_rows(
        self, out: Any, tensor: Any, rows: Any, key: int, scale: float, distribution: str, mirror: Any = None
    ) -> None:
        self._launch(
            lambda k, s: self.plain.perturb_rows(out, tensor, rows, k[0], s[0], distribution, mirror=mirror),
            [key], [scale],
        )  # fmt: skip

    def _launch(self, launch: Any, keys: Any, scales: Any) -> None:
        launches = current()
        if launches is None:
            launch(keys, scales)
            return
        rows = [launches.row(key, scale) for key, scale in zip(keys, scales, strict=True)]

        def of_rows() -> None:
            with torch._C._DisableTorchDispatch():
                table = torch.stack(rows).numpy()
            launch(table[:, 0].astype(np.uint64).tolist(), table[:, 1].astype(np.int32).view(np.float32).tolist())

        of_rows()
        if _tapes:
            _tapes[-1].steps.append(of_rows)


def _each(scale: Any, keys: Any) -> list[float]:
    return [scale] * len(keys) if isinstance(scale, float) else list(scale)
