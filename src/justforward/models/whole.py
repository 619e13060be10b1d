"""Whether a checkpoint's weights are the model's: all of them, under their names, of their shapes, and none left over.

transformers draws at random what a file lacks, and prints a table.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from justforward.models.reading import AGAIN, listed
from justforward.models.sources import CONFIG, ModelError, weight_files

logger = logging.getLogger(__name__)

WRAPPERS = {
    "_orig_mod": "a compiled model (torch.compile)",
    "module": "a model in DataParallel",
    "_fsdp_wrapped_module": "a model in FSDP",
    "_checkpoint_wrapped_module": "a model with checkpointed activations",
}
"""What wrapped a model whose weights' names have this part."""

ADAPTERS = ("lora_", "base_layer.", "modules_to_save.", "original_module.")
QUANTISED = ("qweight", "qzeros", "scales", "g_idx", "SCB", "weight_scale", "weight_scale_inv", "absmax", "quant_map")


@contextmanager
def without_table() -> Iterator[None]:
    """Keep transformers from printing its table of weights: `refuse_unless_whole` says what is wrong."""
    talker = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    talker.addFilter(keep)
    try:
        yield
    finally:
        talker.removeFilter(keep)


def refuse_unless_whole(name: str, model: PreTrainedModel, found: Mapping[str, Any], folder: Path | None) -> None:
    """Raise ModelError, with weights, likely cause and mend, where a loaded model is not its checkpoint.

    found: what `from_pretrained` gives with output_loading_info; folder: where the files lie. Tensors that are no part
    of the model, such as a vision tower or old buffers, are told in the log.
    """
    own = _OwnNames(model)
    missing, unexpected = sorted(found["missing_keys"]), sorted(found["unexpected_keys"])
    if shapes := sorted(found["mismatched_keys"]):
        _, there, here = shapes[0]
        weights = f"{listed([key for key, *_ in shapes])}: {list(there)} in the file, {list(here)} by {CONFIG}"
        size = "vocab_size" if there[1:] == here[1:] else "sizes"
        raise ModelError(name, f"weights have other shapes ({weights}): {CONFIG} gives the {size} of another model")
    if missing:
        cause = _why_missing(own, missing, unexpected)
        raise ModelError(name, f"the file lacks {len(missing)} of the model's weights ({listed(missing)}): {cause}")
    if stray := [key for key in unexpected if own.near(key)]:
        raise ModelError(name, f"the file has weights beside the model's ({listed(stray)}): {_why_stray(own, stray)}")
    if whole_numbers := _whole_numbers(folder, own):
        cause = f"it was quantised, and {CONFIG} has no quantization_config: take another copy of the model"
        raise ModelError(name, f"the file has weights as whole numbers ({listed(whole_numbers)}): {cause}")
    if unexpected:
        logger.info("%d tensors of the file are not the model's and left out: %s", len(unexpected), listed(unexpected))


class _OwnNames:
    """The names of a model's weights."""

    def __init__(self, model: PreTrainedModel):
        named = dict(model.named_parameters(remove_duplicate=False))
        self.names = named.keys()
        self.floating = {name for name, p in named.items() if p.is_floating_point()}
        self.prefix = f"{model.base_model_prefix}."
        modules = dict(model.named_modules())
        self.head = {name for name, module in modules.items() if module is model.get_output_embeddings()}
        self.patterns = {_pattern(key) for key in named}
        self.leaves = {_pattern(name) for name, module in modules.items() if name and _is_leaf(module)}

    def near(self, key: str) -> bool:
        """Whether a key is named as weights of the model are: of a further layer, or of something in a leaf module."""
        key = _pattern(key)
        parts = key.split(".")
        inside = {".".join(parts[:i]) for i in range(1, len(parts))}
        with_prefix = {self.prefix + path for path in inside}
        return bool({key, self.prefix + key} & self.patterns or (inside | with_prefix) & self.leaves)

    def is_head(self, key: str) -> bool:
        """Whether a weight is the language-model head's."""
        return key.rpartition(".")[0] in self.head


def _whole_numbers(folder: Path | None, own: _OwnNames) -> list[str]:
    """Names of floating-point weights that safetensors files hold as integers; transformers would convert them."""
    found = []
    for path in [] if folder is None else weight_files(folder):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                keys = [key for key in file.keys() if own.floating & {key, own.prefix + key}]  # noqa: SIM118
                found += [key for key in keys if file.get_slice(key).get_dtype().startswith(("I", "U", "BOOL"))]
    return found


def _why_missing(own: _OwnNames, missing: list[str], unexpected: list[str]) -> str:
    if known := _why_names(unexpected):
        return known
    for key in unexpected:  # a wrapper that nobody knows
        for name in missing:
            if key.endswith(f".{name}"):
                return _renamed(key.removesuffix(name), "something that holds the model")
    if all(map(own.is_head, missing)):
        return (
            "it was saved from the base model, without its language-model head: save it from AutoModelForCausalLM or, "
            f'if the head is the embedding itself, set "tie_word_embeddings" to true in {CONFIG}'
        )
    here = [key for key in own.names if key not in missing]
    if not here:
        return f"they are the weights of another model than that of {CONFIG}: copy both from one place"
    if (first := min(map(_layer, missing))) > max(map(_layer, here)):
        return f"layers from number {first} on are not in it: {AGAIN}, or set the number of layers in {CONFIG}"
    return f"it is not whole, or {CONFIG} is of another model: copy both from one place"


def _why_stray(own: _OwnNames, stray: list[str]) -> str:
    if known := _why_names(stray):
        return known
    if (first := min(map(_layer, stray))) > max(map(_layer, own.names)):
        return f"the model of {CONFIG} ends before layer {first}: set its number of layers to the file's"
    return f"{CONFIG} is of another model than the weights: copy both from one place"


def _why_names(unexpected: list[str]) -> str | None:
    """What the names alone tell."""
    if any(part in key for key in unexpected for part in ADAPTERS):
        return "it holds an adapter beside the weights: merge it in PEFT (merge_and_unload()) and save again"
    if any(key.endswith(QUANTISED) for key in unexpected):
        return f"it holds quantised weights, and {CONFIG} has no quantization_config: copy both from one place"
    for part, wrapped in WRAPPERS.items():
        if any(part in key.split(".") for key in unexpected):
            return _renamed(f"{part}.", wrapped)
    return None


def _renamed(part: str, wrapped: str) -> str:
    return f"it was saved from {wrapped}: save the model inside, or take '{part}' out of the names in the file"


def _pattern(key: str) -> str:
    """A name without the numbers of layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)", "*", key)


def _layer(key: str) -> int:
    """The first number in a name, -1 for none."""
    numbers = [int(part) for part in key.split(".") if part.isdigit()]
    return numbers[0] if numbers else -1


def _is_leaf(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None and next(module.children(), None) is None
