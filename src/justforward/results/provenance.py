"""What a result file says of the run behind its numbers: enough to tell it from others, and to repeat it."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from justforward.results.files import method_name

PACKAGES = ("justforward", "torch", "transformers")


def run_facts(
    job: Mapping[str, Any], words: Sequence[str], arguments: TrainingArguments, train_set: int | None
) -> dict[str, Any]:
    """The entry "run" of a result file.

    Args:
        job: the job's own arguments.
        words: its command line, without the program's name.
        arguments: the Trainer's.
        train_set: seed of the train set, where there is one.
    """
    facts: dict[str, Any] = {
        "command": shlex.join(["justforward", *words]),
        "task": job["task_name"],
        "model": job["model_name"],
        "method": method_name(job),
        "seed": arguments.seed,
    }
    if job["trainer"] != "none":
        folder = Path(arguments.output_dir or ".")
        several = (job["num_train_sets"] or 1) > 1
        facts["output_dir"] = str(folder / f"trainset{train_set}" if several else folder)
    return {
        **facts,
        "device": _device(arguments.device),
        "processes": arguments.world_size,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
