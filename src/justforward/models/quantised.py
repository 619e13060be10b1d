"""Weights of 8 and 4 bits: how a model is loaded so, and the scales that its integers are multiplied by."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, TorchAoConfig
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

PACKAGES = {"int8": "torchao", "4bit": "bitsandbytes"}
"""What `--load_int8` and `--load_4bit` take. bitsandbytes runs on CPUs too; torchao's 4-bit kernels on GPUs alone."""

WANTED = {"gptq": ("optimum", "gptqmodel"), "awq": ("gptqmodel",)}
"""What transformers loads stored models with, where it names one package after the other or asks for a GPU instead."""


def quantisation(kind: str, config: PreTrainedConfig, rest: torch.dtype) -> Any:
    """The argument `quantization_config` of `from_pretrained` for "int8" or "4bit"; `rest`: dtype of what is computed.

    8 bits: integers with one scale per output; activations are not rounded, for then the loss would be a staircase, on
    which MeZO's small probes measure steps. 4 bits: NF4 (Dettmers et al. 2023, QLoRA), with one scale for 64 weights.
    Raises ValueError where the package is not installed, and for a model that is quantised already.
    """
    option, package = f"--load_{kind}", PACKAGES[kind]
    if importlib.util.find_spec(package) is None:
        raise ValueError(f"{option} needs the package {package}: pip install 'justforward[quant]'")
    if getattr(config, "quantization_config", None):
        raise ValueError(f"{option}: the model is stored quantised already: leave {option} out")
    if kind == "4bit":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=rest)
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def stored_by(config: PreTrainedConfig) -> str | None:
    """The method that a model is stored quantised by; None for other models.

    Raises ValueError, in one line, for one that transformers does not know, whose weights it would take as they are,
    and where it is known which packages are missing.
    """
    stored = _stored(config)
    if stored is None:
        return None
    in_bits = stored.get("load_in_4bit") or stored.get("load_in_8bit")
    method = "bitsandbytes" if in_bits else stored.get("quant_method")
    if not isinstance(method, str):
        raise ValueError(
            "its quantization_config names no quant_method, as is so in models of MLX: take the unquantised model"
        )
    if not any(key in AUTO_QUANTIZER_MAPPING for key in (method, f"{method}_4bit")):
        known = f"transformers {transformers.__version__} does not know"
        raise ValueError(f"it is stored quantised by {method!r}, which {known}: take the unquantised model")
    packages = WANTED.get(method, ())
    if any(importlib.util.find_spec(package) is None for package in packages):
        raise ValueError(
            f"it is stored quantised by {method}, which needs {' and '.join(packages)}: pip install "
            f"{' '.join(packages)}, or take the unquantised model, with --load_4bit"
        )
    return method


def stored_dtype(config: PreTrainedConfig) -> torch.dtype | None:
    """What a model that is stored in 4 bits computes in, which all else of it must be; None for other models."""
    told = _stored(config) or {}
    name = str(told.get("bnb_4bit_compute_dtype") or "").removeprefix("torch.")
    return getattr(torch, name) if told.get("load_in_4bit") and name else None


def _stored(config: PreTrainedConfig) -> dict[str, Any] | None:
    stored: Any = getattr(config, "quantization_config", None)
    return stored if stored is None or isinstance(stored, dict) else getattr(stored, "to_dict", dict)()


def keep_layout(model: nn.Module) -> None:
    """Have 4-bit weights stay in the layout that they are saved in.

    On a CPU with AVX512-BF16 bitsandbytes 0.50 packs them anew in their first forward pass, and any call of
    `state_dict` packs them back, but for the scales: what is saved, and computed from then on, is another model.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def scales(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    """Every quantised layer with its scales: the very tensor that its forward pass reads.

    Raises ValueError for scales that are quantised themselves.
    """
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if (state := getattr(weight, "quant_state", None)) is not None:
            if state.nested:
                raise ValueError(
                    f"the scales of {name} are quantised too (bnb_4bit_use_double_quant): quantise the model without, "
                    "or train an adapter over it (--lora)"
                )
            yield module, state.absmax
        elif hasattr(weight, "__tensor_flatten__") and isinstance(scale := getattr(weight, "scale", None), Tensor):
            yield module, scale


def has_scales(model: nn.Module) -> bool:
    """Whether there are any that can be trained."""
    try:
        return next(scales(model), None) is not None
    except ValueError:
        return False


NAME = "quantisation_scales"
"""Of the parameter that a layer's scales become."""


def train_scales(model: PreTrainedModel) -> int:
    """Make the scales parameters, in the places where the layers read them, and freeze all else; how many layers.

    Checkpoints are as they were: scales are saved with the weights that they belong to.
    """
    model.requires_grad_(False)
    count = 0
    for module, scale in list(scales(model)):
        module.register_parameter(NAME, nn.Parameter(scale))
        module.register_state_dict_post_hook(_without_scales)
        count += 1
    # Of use to the Trainer alone, which refuses models whose trained parameters it takes for integers.
    setattr(model, "is_quantized", False)  # noqa: B010
    return count


def _without_scales(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state.pop(prefix + NAME, None)
