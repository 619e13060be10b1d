"""Trainings that end in the middle, and whether what they come to is the same to the bit."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import TrainerCallback


class Killed(Exception):
    pass


class KillAfter(TrainerCallback):
    """Ends the process's work as a signal would, within the step that follows so many."""

    def __init__(self, steps):
        self.steps = steps

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.steps:
            raise Killed


def weights(folder):
    """Of the model or the adapter that was saved in a folder, by name."""
    return load_file(next(Path(folder).glob("*model.safetensors")))


def same(one, other):
    """Whether two folders hold the same weights, to the bit."""
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
