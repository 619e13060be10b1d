"""Noise that is a function of (seed, step, sample, parameter name, element index), the same bits on every device.

`backend(device)` gives the compiled draws for a device; `noise_key` makes their keys; `noise.reference` is the
definition that every backend is held to.

May import nothing of the package. Start with `reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from justforward.noise.reference import DISTRIBUTIONS, NOISE_VERSION, ROUNDING_VERSION, ROUNDINGS, noise_key
from justforward.registry import Registry

if TYPE_CHECKING:
    import torch

__all__ = [
    "BACKENDS",
    "DISTRIBUTIONS",
    "NOISE_VERSION",
    "ROUNDINGS",
    "ROUNDING_VERSION",
    "NoiseBackend",
    "backend",
    "noise_key",
]


class NoiseBackend(Protocol):
    """Draws of z, made where the weights are and never stored.

    In all methods: `key` comes from `noise_key`; element i of a tensor (in row-major order of its shape) gets z
    of element `start + i` of that key, so a shard draws its own range; `distribution` is "gaussian" or "rademacher";
    weights are float32, bfloat16 or float16. Products and sums are fp32, each rounded on its own, and the result is
    rounded once more to the dtype of the weights, to nearest even unless `add_` is told otherwise. ValueError is raised
    before anything is written.
    """

    device: str
    """The type of the devices whose tensors it takes."""

    def add_(
        self,
        tensors: Sequence[torch.Tensor],
        keys: Sequence[int],
        scale: float | Sequence[float],
        decay: float | Sequence[float] = 0.0,
        distribution: str = "gaussian",
        *,
        starts: int | Sequence[int] = 0,
        rounding: str = "nearest",
        residuals: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        """For every tensor, in one launch: p <- p * (1 - decay) + scale * z.

        `scale`, `decay` and `starts` are one number for all tensors or one per tensor. scale and 1 - decay are rounded
        to fp32; decay 0 is a factor of exactly 1. Strided tensors work, through a copy of one tensor at a time.

        `rounding` is for 16-bit weights, whose grid is coarser than most updates; float32 is always rounded to nearest.
        "nearest": to nearest even. "stochastic": to one of the two neighbours by chance, so that the mean is right; the
        random bits are a function of key and element. "compensated": to nearest, and what was lost
        stays in `residuals`, one contiguous int16 tensor of the weight's shape per 16-bit tensor and None per float32
        one. Weight and residual together are an fp32 master, which is what the update reads and writes: begin with
        zeros, keep the two together, and zero the residual of a weight that anyone else writes.

        Raises:
            ValueError: a dtype, device, length, key, distribution or rounding that does not fit; a scale or decay that
                is not finite; two tensors on the same memory, or one whose elements overlap; residuals that are not
                as above.
        """
        ...

    def move_(
        self,
        tensor: torch.Tensor,
        values: torch.Tensor,
        key: int,
        decay: float = 0.0,
        *,
        start: int = 0,
        rounding: str = "nearest",
        residual: torch.Tensor | None = None,
    ) -> None:
        """Given values in place of draws: p <- p * (1 - decay) + values, rounded as `add_` rounds.

        `values` are contiguous float32 of the tensor's shape. key and start: of the random bits of stochastic rounding,
        which are those of Rademacher noise. Raises ValueError as `add_` does, and for other values.
        """
        ...

    def fill_(self, tensor: torch.Tensor, key: int, start: int = 0, distribution: str = "gaussian") -> None:
        """Write z itself into the tensor. Raises ValueError as `add_` does."""
        ...

    def perturb(
        self,
        out: torch.Tensor,
        tensor: torch.Tensor,
        key: int,
        scale: float,
        start: int = 0,
        distribution: str = "gaussian",
    ) -> None:
        """Write tensor + scale * z into `out`: the bits that `add_` would leave in `tensor`, which is only read.

        Raises ValueError as `add_` does, and where the two differ in shape or dtype or are not contiguous.
        """
        ...

    def perturb_many(
        self,
        outs: Sequence[torch.Tensor],
        tensors: Sequence[torch.Tensor],
        keys: Sequence[int],
        scale: float | Sequence[float],
        starts: int | Sequence[int] = 0,
        distribution: str = "gaussian",
        mirrors: Sequence[torch.Tensor] | None = None,
    ) -> None:
        """`perturb` of several tensors in one launch; `scale` and `starts` are one number or one per tensor.

        `mirrors` get what `-scale` would give, from the same draw.
        """
        ...

    def perturb_rows(
        self,
        out: torch.Tensor,
        tensor: torch.Tensor,
        rows: torch.Tensor,
        key: int,
        scale: float,
        distribution: str = "gaussian",
        mirror: torch.Tensor | None = None,
    ) -> None:
        """Write the rows that an embedding looks up into `out`: out[u] <- the row rows[u] of `perturb`'s result.

        `tensor` is [R, H], `rows` int64 [U] with values from 0 to R - 1 and `out` [U, H]. Only these rows' z is drawn.
        `mirror`, [U, H], gets what `-scale` would give, from the same draw.
        Raises ValueError as `perturb` does, and, on the CPU, where a row is out of range.
        """
        ...


BACKENDS: Registry[Callable[[], NoiseBackend]] = Registry(
    "noise backend for device type", entry_points="justforward.noise"
)
BACKENDS.lazy("cpu", "justforward.noise.cpu:load")
BACKENDS.lazy("cuda", "justforward.noise.triton:load")


def backend(device: torch.device | str) -> NoiseBackend:
    """The backend for the type of `device` ("cpu", "cuda:1", ...): numba on the CPU, Triton on CUDA.

    Raises ValueError where there is none, or where Triton is not installed. There is no silent fallback.
    """
    return BACKENDS.get(str(device).split(":")[0])()
