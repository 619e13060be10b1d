"""One boundary around what libraries do with a model's files: all that they raise is one line, with file and mend.

Damage is found by looking at the files, before a library does: what a library says of a pointer of Git LFS or of half
a download is about something else, and some damage it says nothing about.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from accelerate.utils.memory import should_reduce_batch_size
from transformers import CONFIG_MAPPING, GenerationConfig

from justforward.models.sources import CONFIG, ModelError, folder_of, weight_files

AGAIN = "copy or download it again"
SLOW_TOKENIZER = ("vocab.json", "merges.txt", "vocab.txt", "*.model", "*.spm", "*.tiktoken", "tekken.json")
"""What tokenizers are read from where there is no tokenizer.json."""
TOKENIZER_KEYS = ("tokenizer_class", "model_max_length", "added_tokens_decoder", "chat_template", "auto_map")
"""Of tokenizer_config.json, beside those that end in `_token`."""
FEW = (10, 0.02)
"""So many of a BPE's tokens, and such a share of them, may be made by no merge: special ones that do not look so."""
LONGEST_HEADER = 100_000_000
"""Of a safetensors file, in bytes; its makers' limit."""
LONGEST_REASON = 200
"""Characters of what a library says that are shown."""

PARTS = {
    "configuration": f"{CONFIG} does not fit",
    "tokenizer": "its tokenizer cannot be loaded",
    "weights": "its weights cannot be loaded",
    "run": "it cannot be run on text",
}
"""What is read, and what is said where it fails and no more is known."""


@contextmanager
def reading(name: str, source: Mapping[str, Any], part: str, stored: str | None = None) -> Iterator[None]:
    """Around library calls, and nothing else: a mistake of ours must stay a traceback.

    Args:
        name: the model's, as the user gave it.
        source: what it stands for (see `find_source`).
        part: a key of PARTS; only the files of this part are looked at.
        stored: what the model is stored quantised by, which takes packages and machines of its own.

    Raises ModelError for damaged files, and for whatever the calls raise.
    """
    folder = folder_of(dict(source))
    own = folder if folder == Path(source["pretrained_model_name_or_path"]) else None
    files = [] if folder is None else _files(folder, source.get("gguf_file"), part)
    # What an index names and the hub's cache lacks is still to be downloaded.
    files += [] if own is None or part != "weights" or "gguf_file" in source else _index(own)
    for file in files:
        if found := damage(file):
            raise ModelError(name, f"{file.name} {found}")
    try:
        yield
    except Exception as error:
        raise ModelError(name, _reason(error, own, part, stored)) from error


def damage(path: Path) -> str | None:
    """What is wrong with a file of a model, and the mend, as the rest of a sentence; None where nothing is seen."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if size == 0:
        return f"is empty: {AGAIN}"
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file itself: run `git lfs pull` in the folder, or download the file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file itself: download it again, from the address that gives the file"
    kinds = {".safetensors": _safetensors, ".bin": _torch, ".gguf": _gguf, ".json": _json, "merges.txt": _merges}
    look = kinds.get(path.suffix) or kinds.get(path.name)
    return None if look is None else look(path)


def _files(folder: Path, gguf: str | None, part: str) -> list[Path]:
    """What a part is read from and what of that is here, but tokenizer.json, which takes long to parse."""
    if gguf is not None:
        return [folder / gguf]
    if part == "configuration":
        names = [CONFIG]
    elif part == "weights":
        return [*folder.glob("generation_config.json"), *weight_files(folder)]
    elif part == "tokenizer":
        names = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
        names += [] if (folder / "tokenizer.json").exists() else SLOW_TOKENIZER
    else:
        return []
    return [path for name in names for path in sorted(folder.glob(name))]


def _index(folder: Path) -> list[Path]:
    """The index that transformers reads weights by, if it does: of the four files, the first that is there counts."""
    names = [name + end for name in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")]
    first = next((folder / name for name in names if (folder / name).exists()), None)
    return [first] if first is not None and first.suffix == ".json" else []


def _json(path: Path) -> str | None:
    """A file that holds a JSON object; an index of weights names files that are there."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"is damaged, it is not valid JSON ({error}): {AGAIN}"
    if not isinstance(held, dict):
        return f"is the file of something else, it holds no JSON object: {AGAIN}"
    keys = held.keys()
    own = {
        CONFIG: isinstance(held.get("model_type"), str),
        "generation_config.json": not keys or not keys.isdisjoint(vars(GenerationConfig())),
        "tokenizer_config.json": not keys or any(key in TOKENIZER_KEYS or key.endswith("_token") for key in keys),
    }
    if not own.get(path.name, True):
        return f"is the file of something else, it has no key of a {path.name}: {AGAIN}"
    if path.name.endswith(".index.json"):
        shards = held.get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            return f'is the file of something else, it has no "weight_map": {AGAIN}'
        missing = sorted({shard for shard in shards.values() if not (path.parent / shard).exists()})
        if missing:
            return f"names {listed(missing)}, not there: download what is missing"
    return None


def _safetensors(path: Path) -> str | None:
    """8 bytes of length, a header of JSON that tells where each tensor ends, the tensors, and nothing else."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LONGEST_HEADER:
            return f"is no safetensors file: {AGAIN}"
        header = file.read(length)
    if len(header) < length or size < 8:
        return f"is cut short, at {size:,} bytes: {AGAIN}"
    try:
        told = json.loads(header)
        whole = 8 + length + max((told[key]["data_offsets"][1] for key in told if key != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError):
        return f"is no safetensors file: {AGAIN}"
    if size != whole:
        return f"is {'cut short' if size < whole else 'too long'}, {size:,} bytes instead of {whole:,}: {AGAIN}"
    return None


def _torch(path: Path) -> str | None:
    """What torch.save writes: a zip archive or, until 2020, a row of pickles."""
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04":
        return None if zipfile.is_zipfile(path) else f"is cut short, at {path.stat().st_size:,} bytes: {AGAIN}"
    return None if head[:1] == b"\x80" else f"is no file of weights: {AGAIN}"


def _merges(path: Path) -> str | None:
    """A BPE's merges make every token of the vocabulary but single characters and special ones."""
    vocabulary = path.with_name("vocab.json")
    if not vocabulary.is_file() or damage(vocabulary):
        return None
    made = {line.replace(" ", "", 1) for line in path.read_text(encoding="utf-8", errors="replace").split("\n")}
    tokens = [token for token in json.loads(vocabulary.read_text(encoding="utf-8")) if len(token) > 1]
    orphans = sum(token not in made and not re.fullmatch(r"[<\[|].*[>\]|]", token) for token in tokens)
    if orphans <= FEW[0] + FEW[1] * len(tokens):
        return None
    return f"does not make {orphans} of the {len(tokens)} tokens of vocab.json: one of the two is cut, {AGAIN}"


def _gguf(path: Path) -> str | None:
    with path.open("rb") as file:
        return None if file.read(4) == b"GGUF" else f"is no GGUF file: {AGAIN}"


def _reason(error: Exception, folder: Path | None, part: str, stored: str | None) -> str:
    """What went wrong in a library, as far as it can be told, and the mend; folder: the user's own."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MemoryError) or should_reduce_batch_size(error):
        return "does not fit in memory (`justforward plan` tells what fits): --load_bfloat16 or --load_int8 take less"
    if folder is not None and not _is_text(str(folder)):
        system = sys.getfilesystemencoding()
        mend = "rename it" if system == "utf-8" else "set PYTHONUTF8=1"
        return f"the path is no text in {system}, the system's encoding, and libraries cannot open it: {mend}"
    if folder is None and ("couldn't connect" in text.lower() or "offline" in text.lower()):
        return f"no such folder, and the hub cannot be reached; give a folder with the model's {CONFIG}"
    if "trust_remote_code" in text:
        return "it comes with Python code of its own: give --trust_remote_code if you trust whoever wrote it"
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        return (
            "its file of weights holds Python objects beside tensors, which could run code when they are loaded: save "
            "the tensors alone, as model.safetensors, where you trust the file"
        )
    if isinstance(error, ImportError) and stored is None:
        return _short(text)
    if folder is not None and next(folder.glob("*.gguf"), None) is None and (known := _why_part(folder, part, text)):
        return known
    if stored is not None:
        return (
            f"it is stored quantised by {stored}, which does not work here ({type(error).__name__}: {_short(text)}): "
            "mend that, or take the unquantised model, with --load_4bit"
        )
    if isinstance(error, OSError) or type(error) is ValueError:
        return _short(text)  # written for users
    return f"{PARTS[part]} ({type(error).__name__}: {_short(text)}): {AGAIN}, or see JUSTFORWARD_TRACEBACK=1"


def _is_text(path: str) -> bool:
    """False for bytes that the system's encoding does not know, which Python alone can name to the system."""
    try:
        return path.isascii() or bool(path.encode())
    except UnicodeEncodeError:
        return False


def _why_part(folder: Path, part: str, text: str) -> str | None:
    """What the files of a part tell of its failure."""
    if part == "configuration":
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if told["model_type"] not in CONFIG_MAPPING and "auto_map" not in told:
            kind = f"models of type {told['model_type']!r}"
            return f"transformers {transformers.__version__} does not know {kind}: pip install -U transformers"
    if part == "weights" and not weight_files(folder):
        return "has no weights, model.safetensors or pytorch_model.bin: download them"
    if part != "tokenizer":
        return None
    whole = folder / "tokenizer.json"
    if not whole.exists():
        if not any(next(folder.glob(name), None) for name in SLOW_TOKENIZER):
            return "has no tokenizer (tokenizer.json): copy its files there from the base model's"
        pair = [name for name in ("vocab.json", "merges.txt") if (folder / name).exists()]
        return f"its tokenizer is not whole, {pair[0]} is there alone: {AGAIN}" if len(pair) == 1 else None
    if found := damage(whole):
        return f"tokenizer.json {found}"
    try:
        tokenizers.Tokenizer.from_file(str(whole))
    except Exception:  # the library has no other
        return (
            f"tokenizer.json cannot be read by tokenizers {tokenizers.__version__} ({_short(text)}): it is damaged, or "
            f"saved by another version: {AGAIN}, or pip install -U tokenizers transformers"
        )
    return None


def _short(text: str) -> str:
    """The first sentences of what a library says, or a part of the first."""
    if len(text) <= LONGEST_REASON:
        return text
    sentences, _, _ = text[:LONGEST_REASON].rpartition(". ")
    return f"{sentences}." if sentences else f"{text[:LONGEST_REASON]}..."


def listed(names: list[str]) -> str:
    """The first two of some names, and how many more there are."""
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
