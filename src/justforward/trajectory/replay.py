"""Rebuild a model from its trajectory log: one pass over the weights per step, no data, no forward pass.

`justforward.load` is here, and what the commands `replay` and `log` do.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

from tqdm import tqdm

from justforward.models.fingerprint import fingerprint
from justforward.models.loading import LoadedModel
from justforward.models.recipe import ModelRecipe
from justforward.noise import DISTRIBUTIONS, NOISE_VERSION, ROUNDING_VERSION
from justforward.optim import MeZO
from justforward.optim.build import from_header
from justforward.optim.directions.base import Directions
from justforward.optim.log import FILE_NAME, GUIDED_FILE_NAME, Layout, LogError, Trajectory, read
from justforward.optim.rules.base import Rule
from justforward.results.files import write_text
from justforward.trajectory.recording import apply_steps, count_skipped, groups_of

logger = logging.getLogger(__name__)


def replay(
    path: str | Path,
    *,
    model_name: str | None = None,
    to: int | None = None,
    device: str = "cpu",
    quiet: bool | None = True,
) -> LoadedModel:
    """The model as it was after step `to` of a logged run (None: after the last).

    Bit-identical to the live run on the same kind of device; on another kind equal up to how it rounds.

    Args:
        path: a log, or the folder that holds `trajectory.log`.
        model_name: the base model, where it is not (any more) what the log's header names.
        to: number of steps to apply.
        device: where to build it.
        quiet: show no progress bar; None: show one on a terminal only.

    Raises ValueError for a log that is damaged, too short, without the base it was made from, or of another version.
    """
    log = read(log_file(path))
    to = steps_of(log, to)
    header = log.header
    if is_guided(log):
        raise ValueError(
            f"{log.path}: the directions of a guided run are made of its training rows: rebuild it with justforward "
            f"replay {log.path.parent} --output FOLDER, where the task's data is"
        )
    recipe = _recipe(log, model_name)
    noise, rule = _method(log)
    loaded = recipe.build(device=device)
    if fingerprint(loaded.model) != header["base"]:
        raise ValueError(
            f"{log.path}: {recipe.model_name} is not the model that this run started from (their weights differ): "
            "give the right one with --model"
        )
    mezo = MeZO(
        groups_of(header, loaded.model),
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
    return loaded


def load(folder: str | Path, *, model: str | None = None, device: str = "cpu") -> LoadedModel:
    """The model that a shared run ended with: `folder` holds its log; `model` overrides the base model's name."""
    return replay(folder, model_name=model, device=device)


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


def log_file(path: str | Path) -> Path:
    """A log, or that in a folder. Raises ValueError where there is none."""
    path = Path(path).expanduser()
    if path.is_dir():
        guided = path / GUIDED_FILE_NAME
        path = guided if guided.is_file() and not (path / FILE_NAME).is_file() else path / FILE_NAME
    if not path.is_file():
        raise ValueError(f"{path}: no such trajectory log")
    return path


def _recipe(log: Trajectory, model_name: str | None) -> ModelRecipe:
    recipe = log.header.get("recipe")
    if recipe is None and model_name is None:
        raise ValueError(f"{log.path}: does not name its base model: give it with --model")
    made = ModelRecipe.from_json(recipe) if recipe is not None else ModelRecipe(model_name=model_name or "")
    return made if model_name is None else dataclasses.replace(made, model_name=model_name)


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


def describe(path: str | Path) -> list[str]:
    """Lines that describe and verify a log. Raises LogError for one that is damaged."""
    log = read(log_file(path))
    header = log.header
    size = Layout(header["samples"], 0).record_size
    recipe = header.get("recipe") or {}
    grads = [abs(g) for values in log.steps for g in values if math.isfinite(g)]
    method = (recipe.get("tuning") or {}).get("method", "")
    trained = sum(math.prod(shape) for _, shape, _, _ in header["parameters"])
    lines = [
        f"{log.path}: {log.size} bytes, {len(log.steps)} steps of {size} bytes, justforward {header['version']}",
        f"base      {recipe.get('model_name', '(not named)')}, {recipe.get('dtype', '')} {header['base']}",
        f"trained   {method} {trained} parameters in {len(header['parameters'])} tensors",
        f"schedule  {header['schedule']}",
        f"groups    {header['groups']}",
        f"noise     {header['noise']}, seed {header['seed']}, {header['samples']} "
        f"{'numbers' if is_guided(log) else 'directions'} a step",
        f"rounding  {header['rounding']}",
        f"steps     {len(log.steps)} of {header['schedule']['total_steps']}, {count_skipped(log.steps)} skipped, mean"
        f" |{'number' if is_guided(log) else 'projected gradient'}| {sum(grads) / max(1, len(grads)):.4g}",
    ]
    if log.torn:
        lines.append(f"torn      {log.torn} bytes of an unfinished record at the end: harmless, the step was not made")
    log.check()
    lines.append("verified  every record fits its checksum")
    return lines


CARD = """# A fine-tuned model as a trajectory log

Base model: `{model}` ({dtype}). {steps} steps of MeZO ({method} tuning), {size} bytes.

```python
import justforward

loaded = justforward.load("{folder}")  # .model and .tokenizer
```

Or `justforward replay {folder} --output DIR` for an ordinary checkpoint. The base model must be the one that the run
started from; its weights are checked.
"""


def write_card(folder: Path) -> None:
    """A README beside the log, for whoever gets the folder."""
    log = read(log_file(folder))
    recipe = log.header.get("recipe") or {}
    text = CARD.format(
        model=recipe.get("model_name", "?"),
        dtype=recipe.get("dtype", "?"),
        steps=len(log.steps),
        method=(recipe.get("tuning") or {}).get("method", "full"),
        size=log.size,
        folder=folder.name,
    )
    write_text(folder / "README.md", text)
