"""A KV cache that every row of a batch continues, and that stays as it is.

transformers' growing cache joins what is cached with what is new in every layer, and keeps it. Here rows read one copy
of the cached keys and values; they meet the new ones in a tensor that is gone with the layer's attention.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class ContinuedLayer(DynamicLayer):
    """A layer's keys and values [copies, heads, cached, size], each copy continued by `batch` rows."""

    def __init__(self, layer: DynamicLayer, batch: int):
        super().__init__()
        vars(self).update(vars(layer))
        self.batch = batch

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Of the new [copies * batch, heads, new, size]: the cached ones before each row's, which are not kept."""
        return self._joined(self.keys, key_states), self._joined(self.values, value_states)

    def _joined(self, cached: Tensor | None, new: Tensor) -> Tensor:
        assert cached is not None
        copies, heads, length, size = cached.shape
        joined = new.new_empty(copies, self.batch, heads, length + new.shape[2], size)
        joined[..., :length, :] = cached[:, None]
        joined[..., length:, :] = new.view(copies, self.batch, *new.shape[1:])
        return joined.flatten(0, 1)


def continued(cache: Any, batch: int) -> Any:
    """A cache for `batch` rows behind each row of the given one."""
    one = copy.copy(cache)
    one.layers = [_continued(layer, batch) for layer in cache.layers]
    return one


def _continued(layer: Any, batch: int) -> Any:
    if type(layer) is DynamicLayer and layer.is_initialized:
        return ContinuedLayer(layer, batch)
    repeated = copy.copy(layer)
    repeated.batch_repeat_interleave(batch)
    return repeated
