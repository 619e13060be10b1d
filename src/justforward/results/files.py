"""Result files: metrics as JSON, predictions as JSON lines; written whole (a temporary file, then renamed)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill at any moment, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON; what is not finite as null, for JSON has no word for it."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object per line."""
    write_text(path, "".join(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def result_name(
    *,
    task: str,
    model: str,
    sfc: bool = False,
    icl_sfc: bool = False,
    num_eval: int | None = None,
    num_train: int = 0,
    num_dev: int | None = None,
    tag: str = "",
    train_set: int | None = None,
) -> str:
    """The original's file name: TASK-MODEL[-sfc][-icl_sfc][-sampleevalN][-ntrainN][-ndevN][-TAG]-trainsetI.json.

    train_set: the set's seed; None names a run with a demonstration set per evaluation sample.
    """
    parts = [task, Path(model).name]
    if sfc:
        parts.append("sfc")
    if icl_sfc:
        parts.append("icl_sfc")
    if num_eval is not None:
        parts.append(f"sampleeval{num_eval}")
    if num_train > 0:
        parts.append(f"ntrain{num_train}")
    if num_dev is not None:
        parts.append(f"ndev{num_dev}")
    if tag:
        parts.append(tag)
    parts.append("onetrainpereval" if train_set is None else f"trainset{train_set}")
    return "-".join(parts) + ".json"


def method_name(job: Mapping[str, Any]) -> str:
    """What a job does, by its arguments, in the paper's words: "ICL", "MeZO (LoRA)", "FT", ..."""
    if job.get("linear_probing"):
        return "LP"
    methods = {"zo": "MeZO", "regular": "FT"}
    method = methods.get(str(job.get("trainer")), "ICL" if job.get("num_train") else "Zero-shot")
    names = {"lora": "LoRA", "prefix_tuning": "prefix", "head_tuning": "head", "non_diff": "reward"}
    details = [name for argument, name in names.items() if job.get(argument)]
    details += ["SFC"] if job.get("sfc") or job.get("icl_sfc") else []
    return f"{method} ({', '.join(details)})" if details else method
