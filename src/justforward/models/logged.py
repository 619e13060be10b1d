"""A run's log as a model: the steps that it holds, applied to the model that the run started from.

No data, no forward pass: one pass over the weights per step.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import get_scheduler

from justforward.models.fingerprint import fingerprint
from justforward.models.sources import ADAPTER, CONFIG, weight_files
from justforward.noise import DISTRIBUTIONS, NOISE_VERSION, ROUNDING_VERSION
from justforward.optim import MeZO
from justforward.optim.build import from_header
from justforward.optim.directions.base import Directions
from justforward.optim.log import FILE_NAME, GUIDED_FILE_NAME, MARK, LogError, Trajectory, read
from justforward.optim.rules.base import Rule


def find_log(name: str) -> tuple[Trajectory, int] | None:
    """The log that a model's name stands for, and how many of its steps; None where it stands for something else.

    The name is a log's, that of a folder with a log and no model, or of a checkpoint that marks one of its steps.
    Raises LogError for a log that is damaged before that step.
    """
    path = Path(name).expanduser()
    if path.name in (FILE_NAME, GUIDED_FILE_NAME) and path.is_file():
        log = read(path)
        return log, steps_of(log, None)
    if not path.is_dir() or (path / ADAPTER).exists() or ((path / CONFIG).exists() and weight_files(path)):
        return None
    if (path / MARK).is_file():
        log = read(log_file(path.resolve().parent))
        return log, steps_of(log, int(json.loads((path / MARK).read_text(encoding="utf-8"))["step"]))
    if any((path / file).is_file() for file in (FILE_NAME, GUIDED_FILE_NAME)):
        log = read(log_file(path))
        return log, steps_of(log, None)
    return None


def apply_log(
    model: nn.Module, log: Trajectory, to: int, *, option: str = "--model", quiet: bool | None = True
) -> None:
    """Take `model` from where the logged run started to where it stood after `to` steps.

    Args:
        model: as it was before the first step; changed in place.
        log: of the run.
        to: number of steps.
        option: of the command line, by which another model can be given.
        quiet: show no progress bar; None: show one on a terminal only.

    Raises ValueError for a guided run, another model, and a log of other noise than this version draws.
    """
    header = log.header
    if is_guided(log):
        raise ValueError(
            f"{log.path}: the directions of a guided run are made of its training rows: rebuild it with justforward "
            f"replay {log.path.parent} --output FOLDER, where the task's data is"
        )
    noise, rule = _method(log)
    if fingerprint(model) != header["base"]:
        found = getattr(model, "name_or_path", "") or "the model"
        raise ValueError(
            f"{log.path}: {found} is not the model that this run started from (their weights differ): give the right "
            f"one with {option}"
        )
    mezo = MeZO(
        groups_of(header, model),
        seed=header["seed"],
        samples=header["samples"],
        rounding=header["rounding"].split()[0],
        sides=header.get("sides", 2),
        shaping="second_moment" if header["shaping"] == "second_moment" else "none",
        noise=noise,
        rule=rule,
    )
    with tqdm(total=to, desc="replay", unit=" steps", disable=quiet) as bar:
        apply_steps(mezo, header, log.steps[:to], progress=bar.update)


def learning_rates(schedule: Mapping[str, Any]) -> Iterator[float]:
    """The learning rates of steps 0, 1, 2, ..."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=schedule["lr"])
    scheduler = get_scheduler(
        schedule["name"],
        optimizer,
        num_warmup_steps=schedule["warmup_steps"],
        num_training_steps=schedule["total_steps"],
        scheduler_specific_kwargs=dict(schedule["kwargs"]) or None,
    )
    while True:
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()


def groups_of(header: Mapping[str, Any], model: nn.Module) -> list[dict[str, Any]]:
    """The parameter groups that a header describes, over this model's parameters.

    Raises ValueError where the model has other parameters than the run had.
    """
    parameters = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [{**group, "params": []} for group in header["groups"]]
    for name, shape, dtype, group in header["parameters"]:
        p = parameters.get(name)
        if p is None or list(p.shape) != shape or str(p.dtype) != f"torch.{dtype}":
            found = "is missing" if p is None else f"is {str(p.dtype).removeprefix('torch.')} {list(p.shape)}"
            raise ValueError(f"the log is of another model: its {name} is {dtype} {shape}, here it {found}")
        groups[group]["params"].append((name, p))
    return groups


def apply_steps(
    mezo: MeZO, header: Mapping[str, Any], steps: Sequence[tuple[float, ...]], *, first: int = 0, progress: Any = None
) -> None:
    """Apply the logged steps number `first` to the last; `mezo` stands before step `first`."""
    assert mezo.steps_done == first, (mezo.steps_done, first)
    limit, mezo.max_skipped = mezo.max_skipped, len(steps) + 1
    rates = itertools.islice(learning_rates(header["schedule"]), first, None)
    for values, rate in zip(steps[first:], rates, strict=False):
        for group in mezo.param_groups:
            group["lr"] = rate
        mezo.apply_logged(values)
        if progress is not None:
            progress(1)
    mezo.max_skipped = limit


def _method(log: Trajectory) -> tuple[Directions, Rule]:
    """The run's directions and rule. Raises LogError where this version's are others."""
    header, rounding = log.header, log.header["rounding"].split()[1]
    for distribution in DISTRIBUTIONS:
        noise, rule = from_header(header, distribution)
        if noise.version == header["noise"] and rounding == ROUNDING_VERSION:
            return noise, rule
    raise LogError(
        f"{log.path}: its noise is {header['noise']} with rounding {rounding}, and this version draws {NOISE_VERSION} "
        f"with {ROUNDING_VERSION}: replay it with justforward {header['version']}"
    )


def log_file(path: str | Path) -> Path:
    """A log, or that in a folder. Raises ValueError where there is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        guided = path / GUIDED_FILE_NAME
        path = guided if guided.is_file() and not (path / FILE_NAME).is_file() else path / FILE_NAME
    if not path.is_file():
        raise ValueError(f"{path}: no such trajectory log")
    return path


def is_guided(log: Trajectory) -> bool:
    """Whether a log is of guided steps, which take the task's data to rebuild."""
    return log.header.get("kind") == "guided"


def steps_of(log: Trajectory, to: int | None) -> int:
    """How many steps to apply; None: all. Raises ValueError for more than there are, and LogError for a damaged log."""
    if to is None:
        log.check()
        return len(log.steps)
    if not 0 <= to <= len(log.steps):
        log.check()
        raise ValueError(f"--to {to}: {log.path} holds {len(log.steps)} steps; give a number from 0 to that")
    return to
