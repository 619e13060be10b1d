"""Models and tokenizers from a hub id, a folder, or a GGUF file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from justforward.models.causality import EARLIER, is_causal, plain_tokens
from justforward.models.generation_config import read as read_generation_config
from justforward.models.quantised import keep_layout, quantisation, stored_by, stored_dtype
from justforward.models.reading import reading
from justforward.models.sources import ModelError, find_source, folder_of, hub_adapter
from justforward.models.whole import refuse_unless_whole, without_table

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


def load(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    quantised: str | None = None,
    max_length: int = 2048,
    bos_token_id: int | None = None,
    auto_device: bool = True,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a model in `dtype` (weights stream straight into it) and its tokenizer, in evaluation mode.

    quantised: "int8" or "4bit": the layers' matrices are rounded so, and `dtype` is that of all else; of a model that
    is stored in 4 bits its own. With `auto_device` and several GPUs the model is spread over them, else it is put on
    `device`. Raises ValueError, in one line, for what cannot be found or loaded.
    """
    source = find_source(name)
    if quantised and "gguf_file" in source:
        raise ValueError(f"--load_{quantised}: {name} is a GGUF file, quantised already: leave --load_{quantised} out")
    tokenizer, bos_token_id, max_length = load_tokenizer(
        name, max_length=max_length, bos_token_id=bos_token_id, trust_remote_code=trust_remote_code
    )
    spread = {"device_map": "auto"} if auto_device and torch.cuda.device_count() > 1 else {}
    config = load_config(name, trust_remote_code=trust_remote_code)
    settings = _without_pad_outside(config)
    dtype = stored_dtype(config) or dtype
    if quantised:
        settings["quantization_config"] = quantisation(quantised, config, dtype)
    try:
        stored = stored_by(config)
    except ValueError as error:
        raise ModelError(name, str(error)) from error
    with reading(name, source, "weights", stored), without_table():
        settings["generation_config"] = read_generation_config(source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source,
            **settings,
            **spread,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, with their names
        )
    model, found = loaded
    refuse_unless_whole(name, model, found, folder_of(source))
    keep_layout(model)
    tokens = plain_tokens(model, tokenizer, EARLIER + 2)
    with reading(name, source, "run", stored):
        if not spread:
            torch.nn.Module.to(model, device)
        causal = is_causal(model.eval(), tokens)
    if not causal:
        raise ModelError(name, not_causal(model.config))
    if "gguf_file" in source:
        _forget_gguf(model)
    return LoadedModel(model, tokenizer, bos_token_id, max_length)


def load_config(name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a causal LM. Raises ValueError, in one line, for what cannot be found or is none."""
    source = find_source(name)
    try:
        with reading(name, source, "configuration"):
            config = AutoConfig.from_pretrained(**source, trust_remote_code=trust_remote_code)
    except ModelError:
        if adapter := hub_adapter(name, whole=False):
            raise ModelError(name, adapter) from None
        raise
    if adapter := hub_adapter(name, whole=True):
        raise ModelError(name, adapter)
    if config.is_encoder_decoder:
        raise ModelError(name, not_causal(config, "it is an encoder with a decoder"))
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code:
        raise ModelError(name, not_causal(config, f"transformers has none of type {config.model_type}"))
    return config


def load_tokenizer(
    name: str, *, max_length: int = 2048, bos_token_id: int | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedTokenizerBase, int | None, int]:
    """The tokenizer, the token that prompts start with, and the longest row; no weights are read.

    Raises ValueError, in one line, for what cannot be found or loaded.
    """
    source, config = find_source(name), load_config(name, trust_remote_code=trust_remote_code)
    with reading(name, source, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=trust_remote_code)
        tokenizer("a")  # some of what it was given is only looked at here
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    text_config = config.get_text_config()
    if bos_token_id is None and text_config.model_type == "opt":
        bos_token_id = OPT_BOS
    positions = positions_of(text_config) or max_length
    if positions < max_length:
        logger.warning(
            "max_length %d is more than the model's %d positions; %d is used", max_length, positions, positions
        )
    return tokenizer, bos_token_id, min(max_length, positions)


def embedding_rows(name: str, *, trust_remote_code: bool = False) -> int | None:
    """The rows of a model's input embedding by its configuration; None where that does not say."""
    return _vocabulary(load_config(name, trust_remote_code=trust_remote_code))


def _vocabulary(config: PreTrainedConfig) -> int | None:
    return getattr(config.get_text_config(), "vocab_size", None)


def _without_pad_outside(config: PreTrainedConfig) -> dict[str, Any]:
    """The argument of `from_pretrained` for a model whose padding token has no row in its embedding: torch refuses it.

    Nothing is lost: padding is masked, whatever token stands there.
    """
    text_config, rows = config.get_text_config(), _vocabulary(config)
    pad = getattr(text_config, "pad_token_id", None)
    if rows is None or (pad or 0) < rows:
        return {}
    logger.warning("pad_token_id %d is left out: the model's embedding has %d rows", pad, rows)
    text_config.pad_token_id = None
    return {"config": config}


def positions_of(text_config: PreTrainedConfig) -> int | None:
    """The longest row that a model has positions for; None for no limit, which some write as -1."""
    positions = getattr(text_config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def not_causal(config: PreTrainedConfig, why: str = "a later token changes what it predicts for earlier ones") -> str:
    """The refusal of another kind of model."""
    kind = (config.architectures or [type(config).__name__])[0]
    return f"{kind} is no causal language model, {why}: give one that writes text, such as OPT, Llama or Qwen"


def _forget_gguf(model: PreTrainedModel) -> None:
    """Dequantised weights are ordinary weights: without these marks `save_pretrained` writes plain safetensors."""
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    for mark, value in (("hf_quantizer", None), ("is_quantized", False), ("quantization_method", None)):
        if hasattr(model, mark):
            setattr(model, mark, value)
