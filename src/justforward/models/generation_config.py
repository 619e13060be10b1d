"""What a model's folder says about generation, as far as it can be saved again.

Our own settings decode: of the folder's the stop tokens are used, and the others kept for whoever loads what is saved.
transformers refuses to save a set that its strict check finds wrong, once training has set a token's id in it. A
temperature without sampling, which published models have, would so cost the trained weights. What is refused is
therefore left out when it is read: plain `generate` takes no notice of it either.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig
from transformers.utils import logging as hf_logging

logger = logging.getLogger(__name__)

FILE = "generation_config.json"
INNER = ("decoder", "generator", "text_config")
"""Where the configuration of a model of several parts keeps that of its language model."""


def read(source: Mapping[str, Any]) -> GenerationConfig | None:
    """The generation config for `from_pretrained` of `source`; None for a GGUF file, which has none of its own.

    Without the file, it is made of what config.json says, as transformers does. The stop tokens are those of both.
    Raises ValueError for a file that is no JSON object.
    """
    if "gguf_file" in source:
        return None
    name = source["pretrained_model_name_or_path"]
    described = _described(name)
    try:
        config = _Savable.from_pretrained(name)
    except (OSError, TypeError) as error:
        if Path(name, FILE).exists():
            raise ValueError(f"{FILE} cannot be read as JSON: mend it, or remove it") from error
        fields = {key: value for key, value in described.items() if key in vars(GenerationConfig())}
        config = _Savable.from_dict(fields, _from_model_config=True)
    stops = token_ids(config.eos_token_id)
    more = [token for token in token_ids(described.get("eos_token_id")) if token not in stops]
    if more:
        config.eos_token_id = [*stops, *more]
    return config


def token_ids(given: Any) -> list[int]:
    """Ids as configs give them: one, a list, or none."""
    listed = given if isinstance(given, list | tuple) else [given]
    return [token for token in listed if isinstance(token, int) and not isinstance(token, bool) and token >= 0]


def savable(given: Mapping[str, Any]) -> dict[str, Any]:
    """As many of the settings as the strict check of the installed transformers takes together."""
    with _quiet():
        if _is_taken(given):
            return dict(given)
        kept: dict[str, Any] = {}
        left = {name: value for name, value in given.items() if value is not None}
        while taken := [name for name in left if _takes(kept, name, left)]:
            left = {name: value for name, value in left.items() if name not in taken}
    return kept


class _Savable(GenerationConfig):
    """Reads what `savable` leaves of a file."""

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> GenerationConfig:
        if not isinstance(config_dict, dict):
            raise ValueError(f"{FILE} holds a {type(config_dict).__name__} and no object: mend it, or remove it")
        kept = savable(config_dict)
        lost = [name for name in config_dict if name not in kept and config_dict[name] is not None]
        if lost:
            logger.warning(
                "left out of the model's generation config, as transformers refuses them: %s", ", ".join(lost)
            )
        return GenerationConfig.from_dict(kept, **kwargs)


def _described(name: str) -> dict[str, Any]:
    """What config.json says, the language model's own part of it too; not what its class would add."""
    config, _ = PretrainedConfig.get_config_dict(name)
    inner = next((config[key] for key in INNER if isinstance(config.get(key), dict)), {})
    return {key: value for part in (inner, config) for key, value in part.items() if value is not None}


def _takes(kept: dict[str, Any], name: str, given: Mapping[str, Any]) -> bool:
    """Whether a setting can be kept beside the others; then it is."""
    if taken := _is_taken({**kept, name: given[name]}):
        kept[name] = given[name]
    return taken


def _is_taken(settings: Mapping[str, Any]) -> bool:
    try:
        config = GenerationConfig.from_dict(dict(settings))
        config.validate(strict=True)
        config.to_json_string()
    except Exception:  # whatever a check does with a value of another type
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings about settings that are tried; those that Python gives are refusals."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        hf_logging.set_verbosity(level)
