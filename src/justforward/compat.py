"""What differs between versions of the libraries: each difference once, with the version that ends it.

Nothing else asks for a version. A bound that is raised past such a version ends the difference: its lines go.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from packaging.version import Version


def _release(package: str) -> tuple[int, ...]:
    """Its version's numbers; () where it is not installed, which whoever imports it will say better."""
    try:
        return Version(importlib.metadata.version(package)).release
    except importlib.metadata.PackageNotFoundError:
        return ()


TRANSFORMERS = _release("transformers")

CACHE = "cache" if TRANSFORMERS >= (5, 24) else "past_key_values"
"""The name of keys and values, as an argument of a model's forward and of its `generate`, and in what they give."""

_MARKS = "\ue000", "\ue001"
"""As private as those of transformers, in texts that only go from here to here."""


def mark_control_tokens(value: Any, control: re.Pattern[str]) -> Any:
    """The texts of a value (nested as JSON is) with marks around what `control` finds: it is to be encoded as text.

    transformers 5.20 brings it.
    """
    if TRANSFORMERS >= (5, 20):
        from transformers.utils.chat_template_utils import mark_control_tokens as mark

        return mark(value, control)
    return _marked(value, control)


def encode_marked(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text with such marks, without first tokens.

    Raises ValueError where a marked token is what its own text is encoded as. transformers 5.20 brings it.
    """
    if TRANSFORMERS >= (5, 20):
        return tokenizer(text, add_special_tokens=False, sanitize_control_tokens=True)["input_ids"]
    return _encoded(tokenizer, text)


def _marked(value: Any, control: re.Pattern[str]) -> Any:
    opened, closed = _MARKS
    if isinstance(value, str):
        plain = value.replace(opened, "").replace(closed, "")
        return control.sub(lambda found: f"{opened}{found[0]}{closed}", plain)
    if isinstance(value, Mapping):
        return {key: _marked(inner, control) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_marked(inner, control) for inner in value]
    return value


def _encoded(tokenizer: Any, text: str) -> list[int]:
    opened, closed = _MARKS
    tokens = "|".join(map(re.escape, sorted(tokenizer.added_tokens_encoder, key=len, reverse=True))) or "(?!)"
    # A template may have parted the marks of a token: what is then alone still keeps its neighbours from joining.
    first, *others = re.split(f"{opened}({tokens}){closed}|[{opened}{closed}]", text)
    ids = tokenizer.encode(first, add_special_tokens=False)
    for number, piece in enumerate(others):
        if not piece:
            continue
        as_text = number % 2 == 0
        inner = _inside(tokenizer, piece, as_text)
        if as_text and tokenizer.convert_tokens_to_ids(piece) in inner:
            raise ValueError(f"the tokenizer makes {piece!r} of plain text")
        ids += inner
    return ids


def _inside(tokenizer: Any, piece: str, as_text: bool) -> list[int]:
    """Ids of a piece that begins no text: encoded behind a line break, since some tokenizers put a blank in front."""

    def encode(text: str) -> list[int]:
        return _without_added(tokenizer, text) if as_text else tokenizer.encode(text, add_special_tokens=False)

    break_ids, whole = tokenizer.encode("\n", add_special_tokens=False), encode(f"\n{piece}")
    return whole[len(break_ids) :] if whole[: len(break_ids)] == break_ids else encode(piece)


def _without_added(tokenizer: Any, text: str) -> list[int]:
    """Ids by the vocabulary alone: no added token is looked for."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    parts = [text] if backend.pre_tokenizer is None else [p for p, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [token.id for part in parts for token in backend.model.tokenize(part)]
