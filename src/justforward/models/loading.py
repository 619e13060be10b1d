"""Models and tokenizers from a hub id, a folder, or a GGUF file."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TorchAoConfig,
)

logger = logging.getLogger(__name__)

OPT_BOS = 0
"""The published OPT runs start every prompt with token 0 (they set bos_token_id = 0), not with OPT's own 2."""


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM with its tokenizer; `bos_token_id` is what prompts start with, `max_length` the longest row."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bos_token_id: int | None
    max_length: int


def find_source(name: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a hub id, a folder, a .gguf file, or a folder holding one .gguf file."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1:
            return {"pretrained_model_name_or_path": str(path), "gguf_file": files[0].name}
        if not files:
            raise ValueError(f"--model_name {name}: the folder has neither config.json nor a .gguf file")
        raise ValueError(f"--model_name {name}: the folder has {len(files)} .gguf files; name one of them")
    if name.startswith((".", "/", "~")) and not path.exists():
        raise ValueError(f"--model_name {name}: no such file or folder")
    return {"pretrained_model_name_or_path": str(path) if path.exists() else name}


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    max_length: int = 2048,
    bos_token_id: int | None = None,
    auto_device: bool = True,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model in `dtype` (weights stream straight into it) and its tokenizer, in evaluation mode.

    With `int8` the layers' matrices are rounded to 8 bits, and `dtype` is that of all else. With `auto_device` and
    several GPUs the model is spread over them, else it is put on `device`. Raises ValueError, in one line, for what
    cannot be found or loaded.
    """
    source = find_source(name)
    common = {**source, "trust_remote_code": trust_remote_code}
    quantized: dict[str, Any] = {}
    if int8:
        if "gguf_file" in source:
            raise ValueError(f"--load_int8: {name} is a GGUF file, quantised already: leave --load_int8 out")
        quantized = {"quantization_config": int8_config()}
    tokenizer, bos_token_id, max_length = load_tokenizer(
        name, max_length=max_length, bos_token_id=bos_token_id, trust_remote_code=trust_remote_code
    )
    try:
        if auto_device and torch.cuda.device_count() > 1:
            model = AutoModelForCausalLM.from_pretrained(**common, **quantized, dtype=dtype, device_map="auto")
        else:
            model = AutoModelForCausalLM.from_pretrained(**common, **quantized, dtype=dtype)
            torch.nn.Module.to(model, device)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"--model_name {name}: {_first_line(error)}") from error
    if "gguf_file" in source:
        _forget_gguf(model)
    return LoadedModel(model.eval(), tokenizer, bos_token_id, max_length)


def load_tokenizer(
    name: str, *, max_length: int = 2048, bos_token_id: int | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase, int | None, int]:
    """The tokenizer, the token that prompts start with, and the longest row; no weights are read.

    Raises ValueError, in one line, for what cannot be found or loaded.
    """
    common = {**find_source(name), "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(**common)
        tokenizer = AutoTokenizer.from_pretrained(**common)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(f"--model_name {name}: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    text_config = config.get_text_config()
    if bos_token_id is None and text_config.model_type == "opt":
        bos_token_id = OPT_BOS
    positions = getattr(text_config, "max_position_embeddings", None) or max_length
    if positions < max_length:
        logger.warning(
            "max_length %d is more than the model's %d positions; %d is used", max_length, positions, positions
        )
    return tokenizer, bos_token_id, min(max_length, positions)


def int8_config() -> TorchAoConfig:
    """Weights as 8-bit integers with one scale per output; activations are not rounded.

    Rounded activations (as in LLM.int8) would make the loss a staircase, on which MeZO's small probes measure steps.
    Raises ValueError where torchao is not installed.
    """
    if importlib.util.find_spec("torchao") is None:
        raise ValueError("--load_int8 needs the package torchao: pip install 'justforward[quant]'")
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))


def _forget_gguf(model: PreTrainedModel) -> None:
    """Dequantised weights are ordinary weights: without these marks `save_pretrained` writes plain safetensors."""
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    for mark, value in (("hf_quantizer", None), ("is_quantized", False), ("quantization_method", None)):
        if hasattr(model, mark):
            setattr(model, mark, value)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "couldn't connect" in text.lower() or "offline" in text.lower():
        return "no such folder, and the hub cannot be reached; give a folder with the model"
    return text[:300]
