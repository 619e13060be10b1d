"""How an argument of a job is declared, and the groups that arguments are shown in."""

from __future__ import annotations

import dataclasses
from typing import Any

DATA = "Task and data"
MODEL = "Model"
EVALUATION = "Evaluation"
TRAINING = "Training"
MEZO = "MeZO"
REWARD = "Rewards"
TUNING = "Tuning (full parameters where none is given)"
GENERATION = "Generation"
OUTPUT = "Output"

GROUPS = (DATA, MODEL, EVALUATION, TRAINING, MEZO, REWARD, TUNING, GENERATION, OUTPUT)
"""In the order of the help page."""


def arg(group: str, default: Any, text: str, *, choices: tuple[str, ...] = (), aliases: tuple[str, ...] = ()) -> Any:
    """A field with its help. aliases: other spellings on the command line."""
    metadata = {"group": group, "help": text, "choices": choices or None, "aliases": aliases}
    return dataclasses.field(default=default, metadata=metadata)
