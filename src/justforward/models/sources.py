"""What a model's name stands for: arguments of `from_pretrained`, or one line on what else is there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.peft_utils import find_adapter_config_file

from justforward.optim.log import FILE_NAME as LOG
from justforward.optim.log import MARK

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
ADAPTER_FILES = (ADAPTER, "adapter_model.safetensors", "adapter_model.bin", "prefix_mlp.safetensors")
"""What PEFT and `prefix_mlp` save in a folder."""

WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
"""What transformers reads weights from; the first kind that is there."""

_DATA = ("*.arrow", "*.parquet", "*.jsonl", "*.csv", "*.tsv", "*/*.arrow", "*/*.parquet", "*/*.jsonl")


class ModelError(ValueError):
    """What is wrong with a model, in one line; `reason` is the line without the model's name."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"--model_name {name}: {reason}")
        self.reason = reason


def find_source(name: str) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a hub id, a folder, a .gguf file, or a folder holding one .gguf file.

    Raises ModelError for what is there and no model: an adapter, a log, data.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_file():
        raise ModelError(name, _what_file(path))
    if path.is_dir():
        if (path / ADAPTER).exists():
            whole = (path / CONFIG).exists() and bool(weight_files(path))
            raise ModelError(name, _what_adapter(name, path, whole=whole))
        if not (path / CONFIG).exists():
            files = sorted(path.glob("*.gguf"))
            if len(files) > 1:
                raise ModelError(name, f"the folder has {len(files)} .gguf files; name one of them")
            if not files:
                raise ModelError(name, _what_folder(path))
            return {"pretrained_model_name_or_path": str(path), "gguf_file": files[0].name}
    elif name.startswith((".", "/", "~")):
        raise ModelError(name, "no such file or folder")
    return {"pretrained_model_name_or_path": str(path) if path.exists() else name}


def hub_adapter(name: str, *, whole: bool) -> str | None:
    """What the adapter in a repository of the hub is, in one line; None where there is none, and for folders.

    whole: the repository holds a model too.
    """
    if Path(name).expanduser().exists():
        return None
    try:
        found = find_adapter_config_file(name)
    except Exception:  # whatever keeps it from being found keeps the model from it, and is said there
        return None
    return None if found is None else _what_adapter(name, Path(found).parent, whole=whole)


def folder_of(source: dict[str, Any]) -> Path | None:
    """Where a source's files lie: its folder, or that of the hub's cache; None where nothing of it is here."""
    name = source["pretrained_model_name_or_path"]
    if Path(name).is_dir():
        return Path(name)
    cached = try_to_load_from_cache(name, CONFIG) if name.count("/") <= 1 else None
    return Path(cached).parent if isinstance(cached, str) else None


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read weights from, in order of their names."""
    return next((found for kind in WEIGHTS if (found := sorted(folder.glob(kind)))), [])


def _what_file(path: Path) -> str:
    if path.name == LOG:
        return _what_log(path.parent)
    return f"is a file: give the folder that it lies in, with the model's {CONFIG}, or a .gguf file"


def _what_log(folder: Path) -> str:
    return f"holds the log of a MeZO run, not a model: `justforward replay {folder} --output DIR` makes the model"


def _what_adapter(name: str, path: Path, *, whole: bool) -> str:
    try:
        told = json.loads((path / ADAPTER).read_text(encoding="utf-8"))
        kind, base = told["peft_type"], told["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"its {ADAPTER} is damaged, and says of no adapter what it is: copy it again"
    kind = {"LORA": "LoRA", "PREFIX_TUNING": "prefix"}.get(kind, kind)
    if whole:
        return (
            f"holds a whole model and, from another run, a {kind} adapter, which would be put on the model's weights: "
            f"delete {' and '.join(f for f in ADAPTER_FILES if (path / f).exists())} there to use the model, "
            f"or move them to a folder of their own to use the adapter for {base}"
        )
    mend = f"name {base}"
    if kind == "LoRA":
        mend += f", or make a plain model of both: `justforward export {name} --output DIR`"
    return f"holds a {kind} adapter for {base}, and what is asked for needs a model: {mend}"


def _what_folder(path: Path) -> str:
    return next(_kinds(path), f"the folder has neither {CONFIG} nor a .gguf file")


def _kinds(path: Path) -> Iterator[str]:
    """What a folder without `config.json` may be, the surest first."""
    if (path / MARK).is_file():
        run, step = path.resolve().parent, path.name.rpartition("-")[2]
        yield (
            f"marks step {step} of the log in {run} and holds no weights: `justforward replay {run} --to {step} "
            "--output DIR` makes its model"
        )
    if (path / LOG).is_file():
        yield _what_log(path)
    inner = [file.parent for pattern in ("*/", "snapshots/*/") for file in path.glob(pattern + CONFIG)]
    inner += [file.parent for file in path.glob(f"*/{ADAPTER}")]
    if inner:
        last = max(inner, key=lambda folder: folder.stat().st_mtime)
        yield f"holds no model itself, but {len(inner)} of its folders do: name one of them, such as {last}"
    if (path / "params.json").is_file():
        yield "holds weights as their makers keep them (params.json): convert them to the format of transformers"
    if weight_files(path):
        yield f"has weights but no {CONFIG}: copy it there from where the model comes from"
    if any(next(path.glob(pattern), None) for pattern in _DATA) or (path / "dataset_info.json").is_file():
        yield "holds data, not a model: data is given by --data_dir, or by a task file (--task_file)"
    if (path / "tokenizer_config.json").is_file():
        yield "holds a tokenizer without a model: give the folder with the model"
    if not any(path.iterdir()):
        yield f"the folder is empty: it has neither {CONFIG} nor a .gguf file"
