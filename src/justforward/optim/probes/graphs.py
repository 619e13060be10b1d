"""A probe's forward passes as CUDA graphs: a GPU is given all kernels of a pass at once.

Where batches are small the host takes longer to launch a pass's kernels than the GPU to run them. A graph has them
recorded for one shape of batch, as they read and write the same memory; what a step changes is copied there before it
is replayed: the batch, and the keys and scales of the noise (`noise.recording`).

    engine.graphs = graphs = Graphs(model)
    MeZO(model.named_parameters(), model=model, graphs=graphs)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from justforward.noise import noise_key
from justforward.noise.recording import Launches, NotRecordable, recording
from justforward.optim.directions.base import Perturbation
from justforward.optim.probes.closures import tolerance

MOST = 64
"""Shapes that are kept; of more, the one that was used longest ago is recorded anew when it comes again."""

Inputs = Mapping[str, Tensor]
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Records a function, which has been run before: what replays it, and its result, which each replay writes anew."""


class CudaRecorder:
    """CUDA graphs, all in the same memory: what one leaves there is read before another is replayed."""

    def __init__(self) -> None:
        self._newest: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See Record."""
        graph: Any = torch.cuda.CUDAGraph()
        pool, stream = None if self._newest is None else self._newest.pool(), torch.cuda.current_stream()
        try:
            # Of this thread alone: others, such as one that pins batches, may go on.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                result = run()
        finally:
            torch.cuda.set_stream(stream)  # torch stays on its own where a capture fails
        self._newest = graph
        return graph.replay, result


@dataclass(frozen=True)
class Recorded:
    """A function at one shape. names: of the parameters that the launches perturb, in their order."""

    inputs: Inputs
    replay: Callable[[], None]
    result: Tensor
    launches: Launches
    names: Sequence[str]

    def __call__(self, inputs: Inputs, by: Perturbation | None) -> Tensor:
        """What the function gives, until the next replay of any graph."""
        for name, value in inputs.items():
            self.inputs[name].copy_(value)
        _write(self.launches, self.names, by)
        self.replay()
        return self.result


class Graphs:
    """The recorded passes of a model.

    Args:
        model: graphs read its weights where they are; its parameters stay the same objects.
        record: how a function is recorded; None: as CUDA graphs.
    """

    def __init__(self, model: nn.Module, record: Record | None = None):
        self.model, self.record = model, record or CudaRecorder()
        self.recorded: dict[Any, Recorded] = {}
        self.made = self.replayed = 0
        """How many passes have been recorded, and replayed."""
        self._on = False
        self._room = torch.empty(0)
        self._by: Perturbation | None = None
        self._scratch: Mapping[Any, Tensor] = {}

    @contextmanager
    def used(self, on: bool = True) -> Iterator[None]:
        """Inside, passes are recorded and replayed; or, where this is false, they are not."""
        before, self._on = self._on, on
        try:
            yield
        finally:
            self._on = before

    @contextmanager
    def at(self, by: Perturbation, scratch: Mapping[Any, Tensor]) -> Iterator[None]:
        """Inside, modules compute with perturbed weights, made in these buffers."""
        before = self._by, self._scratch
        self._by, self._scratch = by, scratch
        try:
            yield
        finally:
            self._by, self._scratch = before

    def call(self, function: Callable[[Inputs], Tensor], inputs: Inputs) -> Tensor:
        """function(inputs), logits of any shape, which depends on these tensors, the weights and the direction alone.

        What a graph gives is good until the next call. Raises NotRecordable, in one line, where there can be none.
        """
        if not (self._on and self._recordable()):
            return function(inputs)
        found = self.recorded.pop(self._key(inputs), None)
        if found is None:
            found = self._made(function, inputs)
            if len(self.recorded) == MOST:
                self.recorded.pop(next(iter(self.recorded)))
        self.recorded[self._key(inputs)] = found  # of now: the first run may have made room for perturbed weights
        self.replayed += 1
        return found(inputs, self._by)

    def _recordable(self) -> bool:
        by = self._by
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or _get_current_dispatch_mode() is not None:
            return False
        return by is None or (by.owners is None and by.watch is None and not by.wide and by.directions.draws_in_place)

    @functools.cached_property
    def _weights(self) -> list[Tensor]:
        return [*self.model.parameters(), *self.model.buffers()]

    def _key(self, inputs: Inputs) -> Any:
        by, memory = self._by, [*self._weights, *self._scratch.values()]
        return (
            self.model.training if by is None else (by.paired, *by.scales, self.model.training),
            tuple((name, t.shape, t.dtype) for name, t in inputs.items()),
            tuple((t.data_ptr(), t.numel()) for t in memory),
        )

    def _made(self, function: Callable[[Inputs], Tensor], inputs: Inputs) -> Recorded:
        """A graph that has been held to the function itself."""
        try:
            expected = function(inputs)
            with torch.cuda.device(expected.device) if expected.is_cuda else nullcontext():
                made = self._record(function, inputs, self._place(expected))
            made.result.fill_(torch.nan)  # as what a graph that is empty leaves there
            found, known = made(inputs, self._by), expected.isfinite()
        except torch.OutOfMemoryError:
            self.recorded.clear()
            raise
        expected, found = expected[known], found[known]
        most = tolerance(self._weights) * max(1.0, float(expected.abs().max())) if len(expected) else 0.0
        if not (found - expected).abs().le(most).all():
            raise _refused("its logits are others than those of the pass")
        self.made += 1
        return made

    def _record(self, function: Callable[[Inputs], Tensor], inputs: Inputs, out: Tensor) -> Recorded:
        own, launches = {name: t.clone() for name, t in inputs.items()}, Launches(out.device)
        try:
            with recording(launches):
                function(own)  # compiles the kernels that are to be recorded
            with recording(launches):
                replay, result = self.record(lambda: out.copy_(function(own)))
            return Recorded(own, replay, result, launches, _names(launches, self._by))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotRecordable) as error:
            raise _refused(str(error).partition("\n")[0]) from error

    def _place(self, like: Tensor) -> Tensor:
        """Where a graph leaves its result: all in the same place, for logits are large."""
        if self._room.numel() < like.numel() or (self._room.device, self._room.dtype) != (like.device, like.dtype):
            self._room = like.new_empty(2 * like.numel())
        return self._room[: like.numel()].view(like.shape)


def _refused(reason: str) -> NotRecordable:
    return NotRecordable(
        f"a pass of this model cannot be recorded as a CUDA graph ({reason}): leave --zo_cuda_graphs out"
    )


def _names(launches: Launches, by: Perturbation | None) -> list[str]:
    """Of the parameters whose keys and scales recorded launches have. Raises NotRecordable for others."""
    known = {} if by is None else {(noise_key(*by.place, n), float(np.float32(s))): n for n, s in by.scales.items()}
    try:
        return [known[key, float(np.float32(scale))] for key, scale in launches.made]
    except KeyError:
        raise NotRecordable("it draws noise that is not its direction's") from None


def _write(launches: Launches, names: Sequence[str], by: Perturbation | None) -> None:
    if by is None or not names:
        return
    keys = {name: noise_key(*by.place, name) for name in set(names)}
    launches.write([(keys[name], by.scales[name]) for name in names])
