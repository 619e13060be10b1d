"""Rebuild a model from its trajectory log: one pass over the weights per step, no data, no forward pass.

`justforward.load` is here, and what the commands `replay` and `log` do.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from justforward.models.loading import LoadedModel
from justforward.models.logged import apply_log, is_guided, log_file, steps_of
from justforward.models.recipe import ModelRecipe
from justforward.optim.log import Layout, Trajectory, read
from justforward.results.files import write_text
from justforward.trajectory.recording import count_skipped


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
    loaded = _recipe(log, model_name).build(device=device)
    apply_log(loaded.model, log, to, quiet=quiet)
    return loaded


def load(folder: str | Path, *, model: str | None = None, device: str = "cpu") -> LoadedModel:
    """The model that a shared run ended with: `folder` holds its log; `model` overrides the base model's name."""
    return replay(folder, model_name=model, device=device)


def _recipe(log: Trajectory, model_name: str | None) -> ModelRecipe:
    recipe = log.header.get("recipe")
    if recipe is None and model_name is None:
        raise ValueError(f"{log.path}: does not name its base model: give it with --model")
    made = ModelRecipe.from_json(recipe) if recipe is not None else ModelRecipe(model_name=model_name or "")
    return made if model_name is None else dataclasses.replace(made, model_name=model_name)


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
