"""One dense draw whose signs are flipped for each direction of a step (GRZO: arXiv 2606.02857, after Flipout).

    z = U * (r s^T),   U ~ N of every step;   r [rows], s [width] in {-1, 1} of every direction

x z^T = r * ((s * x) U^T): a batch in which each example has its own z takes one more product, with U. The sum over
directions is U * (R^T diag(c) S). The signs are those of the noise backend, a hash of seed, step, direction, name and
element; the low bits that the published code takes for norms and embeddings make one and the same checkerboard.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from justforward.noise import NOISE_VERSION, backend, noise_key
from justforward.optim.directions.base import DIRECTIONS, Directions, Place, as_matrix, row_slices
from justforward.optim.directions.dense import CounterNoise


@DIRECTIONS.register("flipped")
class Flipped(Directions):
    """See the module."""

    name = "flipped"

    def __init__(self) -> None:
        self.version = f"{NOISE_VERSION}-flipped"
        self.dense = CounterNoise()

    def values(self, name: str, p: Tensor, place: Place, rows: slice | Tensor) -> Tensor:
        """See Directions."""
        r, s = self.signs(name, p, place)
        return self.dense.values(name, p, place._replace(sample=0), rows).mul_(r[rows, None]).mul_(s)

    def signs(self, name: str, p: Tensor, place: Place) -> tuple[Tensor, Tensor]:
        """The signs r [rows] and s [width] of a direction, float32."""
        rows, width = as_matrix(p).shape
        both = torch.empty(rows + width, device=p.device)
        backend(p.device).fill_(both, noise_key(*place, f"{name} signs"), 0, "rademacher")
        return both[:rows], both[rows:]

    def add_products(
        self,
        out: Tensor,
        x: Tensor,
        weight: tuple[str, Tensor],
        places: Sequence[Place],
        owner: Tensor,
        scale: float,
    ) -> bool:
        """See Directions."""
        name, p = weight
        r, s = (torch.stack(parts)[owner] for parts in self._all_signs(name, p, places))
        flipped, shared = x * s[:, None].to(x.dtype), places[0]._replace(sample=0)
        for rows in row_slices(p):
            product = flipped @ self.dense.values(name, p, shared, rows).to(x.dtype).T
            out[..., rows].addcmul_(product.to(out.dtype), r[:, None, rows].to(out.dtype), value=scale)
        return True

    def combined(self, name: str, p: Tensor, place: Place, coefficients: Sequence[float], rows: slice) -> Tensor:
        """See Directions."""
        places = [place._replace(sample=i) for i in range(len(coefficients))]
        r, s = (torch.stack(parts) for parts in self._all_signs(name, p, places))
        weighted = r[:, rows].T * torch.tensor(coefficients, device=p.device)
        return self.dense.values(name, p, place._replace(sample=0), rows).mul_(weighted @ s)

    def _all_signs(self, name: str, p: Tensor, places: Sequence[Place]) -> tuple[list[Tensor], list[Tensor]]:
        left, right = zip(*(self.signs(name, p, place) for place in places), strict=True)
        return list(left), list(right)
