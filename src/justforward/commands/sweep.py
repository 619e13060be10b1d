"""`justforward sweep`: search the learning rate and the size of the probe, and print the best settings."""

from __future__ import annotations

import logging
import math
import shlex
from typing import Any

from justforward.results.files import write_json
from justforward.sweep.options import parse
from justforward.sweep.study import all_seeds, as_words, finalists, folder_name, open_study, search, settings

logger = logging.getLogger(__name__)


def sweep_command(words: list[str]) -> None:
    """`justforward sweep --trials 12 --seeds 0,1,2 [run.py arguments]`."""
    options = parse(words)
    for note in options.base.notes:
        logger.warning("%s", note)
    study = open_study(options)
    search(study, options)
    chosen, now = finalists(study, options), f"{options.lr[0]:g}:{options.lr[1]:g}"
    if not chosen:
        raise ValueError(
            f"justforward sweep: all {options.trials} runs diverged or were stopped: lower --lr (now {now}), or give "
            "more --trials"
        )
    rows = [all_seeds(values, options) for values in chosen]
    ranked = sorted((row for row in rows if math.isfinite(row["loss"])), key=lambda row: row["loss"])
    if not ranked:
        raise ValueError(
            f"justforward sweep: the best settings diverged with some of the seeds: lower --lr (now {now})"
        )
    # A folder for each setting: another one's checkpoints would be in the way.
    place = options.storage.with_suffix("") / "best" / folder_name(ranked[0]["values"])
    words = [*options.words, *as_words(ranked[0]["values"]), "--output_dir", str(place)]
    command = shlex.join(["justforward", *words])
    path = options.storage.with_suffix(".json")
    trials = [{"state": t.state.name.lower(), "loss": t.value, **settings(t)} for t in study.trials]
    write_json(path, {**options.identity(), "seeds": list(options.seeds), "trials": trials, "best": ranked,
                      "command": command})  # fmt: skip
    print("\n".join([*_table(ranked), f"\n{path} has all of it. The best, by the mean loss:\n\n{command}"]))


def _table(ranked: list[dict[str, Any]]) -> list[str]:
    lines = [f"{'learning_rate':>13}  {'zo_eps':>8}  development loss    accuracy"]
    for row in ranked:
        values = row["values"]
        line = (
            f"{values['learning_rate']:>13.3g}  {values['zo_eps']:>8g}  {row['loss']:.4f} +- {row['loss_spread']:.4f}"
        )
        if "accuracy" in row:
            line += f"    {row['accuracy']:.3f} +- {row['accuracy_spread']:.3f}"
        lines.append(line)
    return lines
