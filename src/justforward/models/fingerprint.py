"""A digest of a model's weights, which tells whether two models are one."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def fingerprint(model: nn.Module) -> str:
    """Of all weights, trained and frozen: names, shapes, dtypes and bits."""
    return fingerprint_of(model.named_parameters())


def fingerprint_of(named: Iterable[tuple[str, Tensor]]) -> str:
    """Of some weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in named:
        p = value.detach()
        crc = _checksum(p.full_tensor() if isinstance(p, DTensor) else p)
        digest.update(f"{name} {tuple(p.shape)} {p.dtype} {crc}\n".encode())
    return digest.hexdigest()


def _checksum(t: Any) -> int:
    """Of a tensor's bits; of a quantised one's, those of the tensors that it is made of."""
    if hasattr(t, "__tensor_flatten__"):
        parts = [_checksum(getattr(t, name)) for name in t.__tensor_flatten__()[0]]
        return zlib.crc32(str(parts).encode())
    flat = t.cpu().contiguous().flatten()
    return zlib.crc32(flat.view(torch.uint8).numpy().data) if flat.numel() else 0
