"""Which probe evaluates the loss at theta + eps z, and leaves theta as it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from justforward.optim.directions.base import Directions, NoiseSource
from justforward.optim.probes.just_in_time import JustInTimeProbe
from justforward.optim.probes.moving import CopyProbe, InPlaceProbe
from justforward.optim.probes.sharded import ShardedProbe

logger = logging.getLogger(__name__)

SMALL = 64 << 20
"""Trainable sets of at most this many bytes are copied."""

Probe = InPlaceProbe | CopyProbe | JustInTimeProbe | ShardedProbe

PROBES = ("auto", "paired", "just_in_time", "copy", "in_place")


def choose_probe(
    name: str, model: nn.Module | None, parameters: Sequence[tuple[str, Tensor]], noise: NoiseSource
) -> Probe:
    """The probe called `name`; "auto" takes the cheapest exact one that applies.

    Raises ValueError for an unknown name, for "paired" and "just_in_time" without the model or with other noise, and
    for weights that are not there.
    """
    if name not in PROBES:
        raise ValueError(f"unknown probe '{name}'; known: {', '.join(PROBES)}")
    if absent := [n for n, p in parameters if p.is_meta]:
        raise ValueError(f"{absent[0]} is not in memory (a device map has moved it off): use --zo_offload cpu or disk")
    if model is not None and any(isinstance(p, DTensor) for _, p in parameters):
        if name not in ("auto", "copy"):
            raise ValueError(f"the probe '{name}' takes no sharded weights: use 'auto' or 'copy'")
        return ShardedProbe(model, parameters) if name == "auto" else CopyProbe()
    possible = model is not None and isinstance(noise, Directions) and all(p.is_contiguous() for _, p in parameters)
    if name == "auto":
        small = sum(p.numel() * p.element_size() for _, p in parameters) <= SMALL
        if small and possible and model is not None:
            return JustInTimeProbe(model, parameters, pairs=True, copies=True)
        name = "copy" if small else "paired" if possible else "in_place"
        if name == "in_place" and any(p.element_size() < 4 for _, p in parameters):
            logger.warning("16-bit weights are probed in place, which rounds them at every step: give MeZO the model")
    if name in ("paired", "just_in_time"):
        if not possible or model is None:
            raise ValueError(f"the probe '{name}' needs the model, counter-based noise and contiguous weights")
        return JustInTimeProbe(model, parameters, pairs=name == "paired")
    return CopyProbe() if name == "copy" else InPlaceProbe()
