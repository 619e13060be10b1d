"""Trainings that came to nothing: what they leave is not to be saved."""

from __future__ import annotations

from torch import nn

from justforward.optim.distribution.ranks import gathered
from justforward.scoring.finite import diverged, likely_cause
from justforward.training.guided_trainer import GuidedTrainer
from justforward.training.objective_trainer import ObjectiveMeZOTrainer, ObjectiveTrainer


def refuse_failed(trainer: ObjectiveTrainer | ObjectiveMeZOTrainer | GuidedTrainer) -> None:
    """Raise ValueError after a training that came to nothing: its weights are not for saving."""
    assert isinstance(trainer.model, nn.Module)
    if any(gathered(diverged(trainer.model))):
        why = likely_cause(trainer.model)
        raise ValueError(f"the weights are not numbers after the training, no model is saved: {why}")
    if 0 < trainer.state.global_step == trainer.skipped_facts().get("skipped_steps"):
        raise ValueError(f"no step had a loss that is a number, nothing is trained: {likely_cause(trainer.model)}")
