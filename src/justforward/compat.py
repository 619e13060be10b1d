"""What differs between versions of the libraries: each difference once, with the version that ends it.

Nothing else asks for a version. A bound that is raised past such a version ends the difference: its lines go. One
difference needs no question: `scoring.positions` fits both ways in which models index hidden states.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from packaging.version import Version

TESTED: dict[str, dict[str, str]] = {
    "lowest": {
        "python": "3.11",
        "torch": "2.8.0",
        "transformers": "5.0.0",
        "accelerate": "1.10.0",
        "peft": "0.19.0",
        "datasets": "4.0.0",
        "numpy": "2.0.2",
        "numba": "0.60.0",
    },
    "middle": {
        "python": "3.12",
        "torch": "2.11.0",
        "transformers": "5.17.0",
        "accelerate": "1.15.0",
        "peft": "0.21.2",
        "datasets": "5.2.0",
        "numpy": "2.5.0",
        "numba": "0.68.1",
    },
    "newest": {
        "python": "3.11",
        "torch": "2.13.0",
        "transformers": "5.24.0",
        "accelerate": "1.15.0",
        "peft": "0.21.2",
        "datasets": "5.2.0",
        "numpy": "2.4.6",
        "numba": "0.68.1",
    },
}
"""Combinations that the tests were run with; docs/what-works.md says which tests."""


def standing(versions: Mapping[str, str]) -> str:
    """Where versions (python's, and packages' by name) stand to those that were tested, in a few words."""
    names = TESTED["newest"]
    here = {name: _numbers(name, versions[name]) for name in names if name in versions}
    known = {name: [_numbers(name, each[name]) for each in TESTED.values()] for name in names}
    for label, each in TESTED.items():
        if here == {name: _numbers(name, each[name]) for name in names}:
            return f"tested as it is ({label} versions)"
    outside = [
        f"{name} is {'newer' if numbers > max(known[name]) else 'older'} than any tested"
        for name, numbers in here.items()
        if not min(known[name]) <= numbers <= max(known[name])
    ]
    return ", ".join(outside) or "not tested as it is; each version lies between tested ones"


def _numbers(name: str, version: str) -> tuple[int, ...]:
    return Version(version).release[: 2 if name == "python" else None]


def installed_version(package: str) -> str | None:
    """Of a package; None where it is not installed, as this one is not where a checkout's run.py is run."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(package: str) -> tuple[int, ...]:
    """Its version's numbers; () where it is not installed, which whoever imports it will say better."""
    return Version(found).release if (found := installed_version(package)) else ()


TRANSFORMERS = _release("transformers")
TORCH = _release("torch")

CACHE = "cache" if TRANSFORMERS >= (5, 24) else "past_key_values"
"""The name of keys and values, as an argument of a model's forward and of its `generate`, and in what they give."""

NEW_NAMES = (
    {}
    if TRANSFORMERS >= (5, 23)
    else {
        "gradient_checkpointing": "activation_checkpointing",
        "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    }
)
"""Fields of TrainingArguments by the names that a later version gave them, under which the package has them."""

FORMER_FIELDS = frozenset[str]() if TRANSFORMERS >= (5, 15) else frozenset({"warmup_ratio", "logging_dir"})
"""Fields of TrainingArguments that other fields had already replaced: they are old spellings."""

_MARKS = "\ue000", "\ue001"
"""As private as those of transformers, in texts that only go from here to here."""


FSDP_IS_A_SWITCH = TRANSFORMERS >= (5, 10)
"""Whether `--fsdp` may stand alone; before, it was a list of words, and its first version the default."""

NO_FSDP: Any = None if FSDP_IS_A_SWITCH else []
"""The value of TrainingArguments.fsdp by which the Trainer leaves FSDP aside."""


def training_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of TrainingArguments by the names, and in the form, that the installed version knows."""
    old = {new: name for name, new in NEW_NAMES.items()}
    fields = {old.get(name, name): value for name, value in values.items()}
    if not FSDP_IS_A_SWITCH and fields.get("fsdp"):
        fields |= _words_of_fsdp(fields["fsdp"], fields.get("fsdp_config"))
    return fields


def _words_of_fsdp(given: Any, config: Any) -> dict[str, Any]:
    words = "full_shard auto_wrap" if given is True else given
    if isinstance(config, str) and config.startswith("{"):
        config = json.loads(config)
    return {"fsdp": words, "fsdp_config": config if isinstance(config, str) else {"version": 2, **(config or {})}}


def checkpoint_activations(model: Any, on: bool) -> None:
    """Have a model compute activations anew in the backward pass, or no longer; transformers 5.23 named it so."""
    what = "activation" if TRANSFORMERS >= (5, 23) else "gradient"
    getattr(model, f"{what}_checkpointing_{'enable' if on else 'disable'}")()


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; torch 2.11 names all that it found."""
    import torch

    if TORCH >= (2, 11):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def skeleton(config: Any, **settings: Any) -> Any:
    """A causal LM of this configuration, in evaluation mode, its tied weights tied (transformers 5.2 does that)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, **settings).eval()
    model.tie_weights()
    return model


@contextmanager
def full_precision() -> Iterator[None]:
    """Products and convolutions of float32 in float32, where a GPU would otherwise take TF32.

    torch 2.9 brings one name for both kinds of switches.
    """
    import torch

    name, off = ("fp32_precision", "ieee") if TORCH >= (2, 9) else ("allow_tf32", False)
    places: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
    if TORCH >= (2, 9):
        places[1] = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = [getattr(place, name) for place in places]
    try:
        for place in places:
            setattr(place, name, off)
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            setattr(place, name, precision)


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
