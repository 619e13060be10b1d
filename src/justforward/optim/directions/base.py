"""What a direction is, and what every source of directions offers.

A direction z is a function of a place (seed, step, sample) and a parameter's name. It is made anew for every pass and
never stored: as values in float32, some rows at a time, or as the factors of a matrix of low rank.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from justforward.noise import backend, noise_key
from justforward.registry import Registry

CHUNK = 5 << 19
"""Elements of a weight that are perturbed at a time: 10 MB of float32 stay in cache until they are multiplied."""

GPU_CHUNK, GPU_SHARE = 1 << 25, 100
"""On a GPU so many, or this part of all trained weights: it has no such cache, and every launch takes its host time.
In pieces for the CPU's cache a step of 13 billion weights took 27 times its two forwards (H100: 10,000 pieces)."""

ROWS = 64
"""There a piece of more rows is a multiple of so many: of odd numbers cuBLAS has no kernels for today's cards."""


class NoiseSource(Protocol):
    """Adds a direction z, or any multiple of it, to parameters."""

    version: str
    """Names the definition of z: equal versions, seeds and names give equal z."""

    def add_(
        self,
        parameters: Sequence[tuple[str, Tensor]],
        *,
        seed: int,
        step: int,
        sample: int,
        scales: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        """In place, for every named parameter: p <- p * (1 - decay) + scale * z(seed, step, sample, name)."""
        ...


DIRECTIONS: Registry[type[Directions]] = Registry("directions", package="justforward.optim.directions")


class Place(NamedTuple):
    """Which of a run's directions: that of direction number `sample` of a step."""

    seed: int
    step: int
    sample: int


class Directions(ABC):
    """A noise source that can be asked for parts of z, and so be probed just in time.

    A new one is a file with `values` that registers itself in DIRECTIONS. What follows from `values` is written
    here once; a source overrides what it can do in less time. A parameter of more than two dimensions is a matrix of
    `shape[0]` rows, one of fewer a single row.
    """

    name: ClassVar[str]
    version: str
    draws_in_place: ClassVar[bool] = False
    """Whether `perturb_many` makes no z of its own: then pieces may be large."""
    small_parts: ClassVar[bool] = False
    """Whether `add_products` needs no z of a weight's size: then directions share passes."""

    @abstractmethod
    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """Z of some rows of a parameter (a slice, or indices int64 [U]): [rows, width] in float32, on its device."""

    def factors(self, name: str, p: Tensor, place: Place) -> tuple[Tensor, Tensor] | None:
        """A [rows, r] and B [width, r], float32, with z = A B^T; None where the rank is not low."""
        return None

    def stacked(self, name: str, p: Tensor, places: Sequence[Place]) -> tuple[Tensor, Tensor] | None:
        """The factors of several directions: A [M, rows, r] and B [M, width, r], float32."""
        found = [self.factors(name, p, place) for place in places]
        known = [pair for pair in found if pair is not None]
        if len(known) < len(found):
            return None
        a, b = (torch.stack(parts) for parts in zip(*known, strict=True))
        return a, b

    def add_products(
        self,
        out: Tensor,
        x: Tensor,
        weight: tuple[str, Tensor],
        places: Sequence[Place],
        owner: Tensor,
        scale: float,
    ) -> bool:
        """Out <- out + scale x z^T, where each sequence of a batch has its own z; False where that takes z itself.

        out: [N, T, rows], x: [N, T, width]; owner: int64 [N], which of `places` each sequence's direction is that of.
        """
        found = self.stacked(*weight, places)
        if found is None:
            return False
        a, b = (part[owner] for part in found)
        add_low_rank(out, x, a, b, scale)
        return True

    def add_rows(
        self,
        out: Tensor,
        ids: Tensor,
        weight: tuple[str, Tensor],
        places: Sequence[Place],
        owner: Tensor,
        scale: float,
    ) -> bool:
        """Out <- out + scale z[ids], where each sequence of a batch has its own z; False where that takes z itself.

        out: float32 [N, T, width], ids: int64 [N, T], rows of z; owner: int64 [N], as in `add_products`.
        """
        found = self.stacked(*weight, places)
        if found is None:
            return False
        add_outer(out, found[0][owner[:, None], ids], found[1][owner], scale)
        return True

    def combined(self, name: str, p: Tensor, place: Place, coefficients: Sequence[float], rows: slice) -> Tensor:
        """The sum over a step's directions of coefficient z, of some rows: [rows, width], float32."""
        total = None
        for sample, coefficient in enumerate(coefficients):
            z = self.values(name, p, place._replace(sample=sample), rows).mul_(coefficient)
            total = z if total is None else total.add_(z)
        assert total is not None
        return total

    def describe(self) -> dict[str, Any]:
        """Its settings, the arguments that it is made with, as JSON values for the header of a log."""
        return {}

    def age(self, step: int) -> int:
        """Steps since what a rule keeps began anew."""
        return step

    def state(self) -> dict[str, Any]:
        """What must be saved with the weights to go on from here; the tensors themselves."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        assert not state

    def state_bytes(self, parameters: Sequence[tuple[str, Tensor]]) -> int:
        """Bytes kept from step to step."""
        return 0

    def learn(self, parameters: Sequence[tuple[str, Tensor]], place: Place, projected_grads: Sequence[float]) -> None:
        """Told what a step measured, after it has been applied; `place` is that of its first direction."""
        return

    def add_(
        self,
        parameters: Sequence[tuple[str, Tensor]],
        *,
        seed: int,
        step: int,
        sample: int,
        scales: Sequence[float],
        decays: Sequence[float],
        rounding: str = "nearest",
        residuals: Sequence[Tensor | None] | None = None,
    ) -> None:
        """See NoiseSource, and `NoiseBackend.add_` for rounding and residuals."""
        place = Place(seed, step, sample)
        for i, ((name, p), scale, decay) in enumerate(zip(parameters, scales, decays, strict=True)):
            residual = None if residuals is None else residuals[i]
            for rows in row_slices(p):
                z = self.values(name, p, place, rows).mul_(scale)
                move_rows(p, rows, z, noise_key(seed, step, sample, name), decay, rounding, residual)

    def perturb_many(
        self,
        outs: Sequence[Tensor],
        tensors: Sequence[Tensor],
        wholes: Sequence[tuple[str, Tensor]],
        place: Place,
        scales: Sequence[float],
        first: int = 0,
        mirrors: Sequence[Tensor] | None = None,
    ) -> None:
        """Out <- tensor + scale z for tensors that are rows `first`, first + 1, ... of the named parameters.

        mirrors get what -scale gives.
        """
        for i, (out, tensor, (name, p), scale) in enumerate(zip(outs, tensors, wholes, scales, strict=True)):
            rows = slice(first, first + as_matrix(tensor).shape[0])
            z = self.values(name, p, place, rows).view(tensor.shape).to(out.device)
            for to, sign in ((out, 1.0), *(((mirrors[i], -1.0),) if mirrors is not None else ())):
                to.copy_(tensor)
                backend(to.device).move_(to, z * (sign * scale), 0)

    def perturb_rows(
        self,
        out: Tensor,
        weight: tuple[str, Tensor],
        rows: Tensor,
        place: Place,
        scale: float,
        mirror: Tensor | None = None,
    ) -> None:
        """Out <- the rows (int64 [U]) of a parameter + scale z, [U, width]; mirror gets what -scale gives."""
        name, p = weight
        z = self.values(name, p, place, rows)
        for to, sign in ((out, 1.0), *(((mirror, -1.0),) if mirror is not None else ())):
            torch.index_select(p, 0, rows, out=to)
            backend(to.device).move_(to, z * (sign * scale), 0)


def as_matrix(p: Tensor) -> Tensor:
    """A view of a contiguous parameter as [rows, width]."""
    return p.reshape(p.shape[0], -1) if p.dim() > 1 else p.reshape(1, -1)


def add_low_rank(out: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> None:
    """Out [N, T, rows] <- out + scale (x B) A^T, with x [N, T, width], A [N, rows, r] and B [N, width, r].

    The parts are rounded to the dtypes of what they are multiplied with, and the sum is made in one pass over `out`.
    """
    add_outer(out, torch.bmm(x, b.to(x.dtype)), a, scale)


def add_outer(out: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Out [N, T, n] <- out + scale left right^T, with left [N, T, r] and right [N, n, r]; in one pass over `out`."""
    left, right = left.to(out.dtype), right.to(out.dtype).mT
    if left.shape[-1] == 1:
        out.addcmul_(left, right, value=scale)
    else:
        torch.baddbmm(out, left, right, alpha=scale, out=out)


def piece(device: str, trained: int | None = None) -> int:
    """Elements that are perturbed at a time on a type of device.

    trained: how many are, where noise is drawn into what is perturbed; None where z takes float32 tensors of a piece.
    """
    if device == "cpu":
        return CHUNK
    return 4 * CHUNK if trained is None else max(GPU_CHUNK, trained // GPU_SHARE)


def whole_rows(elements: int, width: int, device: str) -> int:
    """How many rows of a matrix a piece of so many elements takes, one at least."""
    rows = max(1, elements // max(1, width))
    return rows - rows % ROWS if rows > ROWS and device != "cpu" else rows


def row_slices(p: Tensor) -> list[slice]:
    """The rows of a parameter in pieces that stay in cache; on a GPU, in larger ones."""
    rows, width = as_matrix(p).shape
    step = whole_rows(piece(p.device.type), width, p.device.type)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def move_rows(
    p: Tensor, rows: slice, values: Tensor, key: int, decay: float, rounding: str, residual: Tensor | None
) -> None:
    """Some rows of a contiguous parameter: p <- p (1 - decay) + values, rounded as `NoiseBackend.move_` rounds."""
    matrix = as_matrix(p.detach())
    rest = None if residual is None else as_matrix(residual)[rows]
    start = rows.start * matrix.shape[1]
    noise, decay = backend(p.device), float(decay)
    noise.move_(matrix[rows], values, key, decay, start=start, rounding=rounding, residual=rest)


class NotDivisible(RuntimeError):
    """A module was given something whose rows cannot be told apart: the model computes with one direction at a time."""


class Owners:
    """Which of a step's directions each row of a batch has; told anew before each forward pass.

    numbers: of the directions that are probed; present: of those that the pass has; places: of these among `numbers`.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = list(numbers)
        self.present: list[int] = []
        self.places = torch.empty(0, dtype=torch.int64)
        self._width, self._known = 0, list[Tensor]()

    def tell(self, rows: Tensor, kept: Tensor, width: int) -> None:
        """rows: int64 [B], for each sequence a place in `numbers`; kept: bool [B, width], what the head is given."""
        self.places, index = rows.unique(return_inverse=True)
        self.present, self._width = [self.numbers[place] for place in self.places.tolist()], width
        self._known = [index, index.repeat_interleave(kept.sum(1).to(index.device)), index.repeat_interleave(width)]

    def of(self, x: Tensor) -> Tensor:
        """Int64 [N]: the place in `present` of each entry of a tensor's first dimension. Raises NotDivisible."""
        for known in self._known:
            if x.dim() and len(x) == len(known):
                return known
        raise NotDivisible(f"{tuple(x.shape)} has no rows of the batch")

    def by_sequence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`of` as few entries as have a direction each, int64 [N], and x as [N, T, width]. Raises NotDivisible."""
        owner = self.of(x)
        if owner is self._known[-1] and self._width:
            return self._known[0], x.reshape(len(self._known[0]), -1, x.shape[-1])
        return owner, x.reshape(len(x), -1, x.shape[-1])


@dataclass
class Perturbation:
    """What all modules compute with during one probe.

    place: the direction's; scales: by parameter name, eps times the sign (of the first half, if `paired`); wholes: the
    parameters by name; reached: names of parameters whose owner was called; moved: perturbed copies of parameters of
    few elements, of each sign, or of each direction; stacks: the same by name, [signs or directions, ...]; watch: notes
    what reads weights; owners: where each row has a direction of its own, whose number takes the place of the sample's;
    wide: whether perturbed copies are float32, so that nothing is rounded.
    """

    directions: Directions
    place: Place
    scales: dict[str, float]
    wholes: dict[str, Tensor]
    paired: bool
    reached: set[str] = field(default_factory=set)
    moved: list[dict[str, Tensor]] | dict[int, dict[str, Tensor]] = field(default_factory=list)
    stacks: dict[str, Tensor] = field(default_factory=dict)
    owners: Owners | None = None
    watch: Any = None
    wide: bool = False

    def read(self, weight: Tensor) -> Tensor:
        """A weight, or a piece of one, as it is perturbed."""
        return weight.detach().float() if self.wide else weight.detach()

    @contextmanager
    def perturbing(self) -> Iterator[None]:
        """Inside, weights are read to be perturbed."""
        if self.watch is None or self.watch.paused:
            yield
            return
        self.watch.paused = True
        try:
            yield
        finally:
            self.watch.paused = False

    def alone(self, sample: int) -> Perturbation:
        """The same for one of the directions."""
        place = self.place._replace(sample=sample)
        return dataclasses.replace(self, place=place, moved=[self.moved[sample]], owners=None)


@dataclass(frozen=True)
class Direction:
    """One z, scaled: theta + sign * eps * z for the named parameters; eps holds one number per parameter."""

    parameters: Sequence[tuple[str, Tensor]]
    eps: Sequence[float]
    noise: NoiseSource
    seed: int
    step: int
    sample: int

    def add_(self, sign: float) -> None:
        """Move all parameters, in place."""
        scales = [sign * eps for eps in self.eps]
        decays = [0.0] * len(scales)
        where = {"seed": self.seed, "step": self.step, "sample": self.sample}
        self.noise.add_(self.parameters, **where, scales=scales, decays=decays)

    def of(self, sample: int) -> Direction:
        """The step's direction number `sample`."""
        return dataclasses.replace(self, sample=sample)

    def only(self, names: set[str]) -> Direction:
        """The same direction in the parameters of these names, and none in the others."""
        kept = [i for i, (name, _) in enumerate(self.parameters) if name in names]
        return dataclasses.replace(self, parameters=[self.parameters[i] for i in kept], eps=[self.eps[i] for i in kept])

    def perturbation(
        self, sign: float, *, paired: bool = False, owners: Owners | None = None, wide: bool = False
    ) -> Perturbation:
        """What modules compute with at theta + sign * eps * z."""
        assert isinstance(self.noise, Directions)
        scales = {name: sign * eps for (name, _), eps in zip(self.parameters, self.eps, strict=True)}
        place = Place(self.seed, self.step, self.sample)
        return Perturbation(self.noise, place, scales, dict(self.parameters), paired, owners=owners, wide=wide)
