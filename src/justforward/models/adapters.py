"""A saved adapter as the name of a model: the base that it was trained on, and the adapter put on it."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from justforward.models.loading import LoadedModel
from justforward.models.sources import ADAPTER, CONFIG, ModelError, weight_files

logger = logging.getLogger(__name__)

KINDS = {"LORA": "lora", "PREFIX_TUNING": "prefix"}
"""PEFT's kinds of adapters, and the tuning methods that train them."""

WEIGHTS = "adapter_model.safetensors"


def adapter_folder(name: str) -> Path | None:
    """The folder of an adapter; None for what is no folder, or holds a whole model."""
    path = Path(name).expanduser()
    whole = (path / CONFIG).exists() and weight_files(path)
    return path if (path / ADAPTER).is_file() and not whole else None


def base_of(folder: Path, given: str | None) -> str:
    """The model that an adapter is for: as given, else as the adapter says. Raises ModelError where it says none."""
    base = _told(folder).get("base_model_name_or_path")
    if given is not None or base:
        return given if given is not None else str(base)
    raise ModelError(str(folder), f"its {ADAPTER} names no base model: give it with --base_model")


def kind_of(folder: Path) -> str:
    """The tuning method that makes such an adapter. Raises ModelError for a kind that none makes."""
    kind = _told(folder).get("peft_type")
    if kind not in KINDS:
        raise ModelError(str(folder), f"is an adapter of the kind {kind}: only {' and '.join(KINDS)} can be used here")
    return KINDS[kind]


def put_on(loaded: LoadedModel, folder: Path, *, trained: bool) -> LoadedModel:
    """The base with the adapter on it, in float32 over a base of any dtype; all else is frozen.

    Raises ModelError for an adapter without safetensors, and one that does not fit the base.
    """
    if not (folder / WEIGHTS).is_file():
        raise ModelError(str(folder), f"has no {WEIGHTS}: save the adapter again with a PEFT of today")
    told: Any = PeftConfig.from_pretrained(str(folder))
    if getattr(told, "prefix_projection", False):
        told.prefix_projection = False  # what is saved is the prefix that its MLP had made
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT asks for what transformers has renamed
            warnings.filterwarnings("error", message="Found missing adapter keys")
            trainable = trained and not told.is_prompt_learning  # of which PEFT loads none to be trained
            model = PeftModel.from_pretrained(loaded.model, folder, config=told, is_trainable=trainable).eval()
            with torch.no_grad():  # of a prefix, the shapes are met where it is used
                model(input_ids=torch.tensor([[1, 2]], device=loaded.model.device))
    except (RuntimeError, ValueError, UserWarning, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(str(folder), f"the adapter does not fit {loaded.model.name_or_path}: {reason}") from error
    if trained and told.is_prompt_learning:
        told.inference_mode = False
        for p in model.prompt_encoder.parameters():
            p.requires_grad_(True)
    length = loaded.max_length - getattr(told, "num_virtual_tokens", 0)
    logger.info("the adapter of %s on %s", folder, loaded.model.name_or_path)
    return dataclasses.replace(loaded, model=cast("PreTrainedModel", model), max_length=length)


def _told(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(str(folder), f"its {ADAPTER} is damaged: copy it again ({error})") from error
    if not isinstance(told, dict):
        raise ModelError(str(folder), f"its {ADAPTER} is damaged, and says of no adapter what it is: copy it again")
    return told
