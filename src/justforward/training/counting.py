"""How many forward passes a training has made: what methods are compared at.

A function of the steps, so that a run that was stopped, continued or replayed, and every rank of it, tells the same.
That a step makes as many passes as it says is held by tests, with a hook on the model. What the first step does to hold
a probe to another is not counted.
"""

from __future__ import annotations

from transformers import Trainer
from transformers.trainer_utils import has_length


def count(trainer: Trainer, passes: int, *, groups: int = 1) -> dict[str, int]:
    """What a training's steps so far have cost.

    Args:
        trainer: whose steps, batches and data are meant.
        passes: forward passes over each batch; one of a training by gradients goes back as well.
        groups: of ranks that are given all data of a step each, and share `passes`.

    Returns:
        forwards: passes over a (micro-)batch, of all processes; examples: examples in them.
    """
    arguments, steps = trainer.args, trainer.state.global_step
    accumulated = arguments.gradient_accumulation_steps
    batch = arguments.per_device_train_batch_size * max(1, arguments.world_size // groups)
    seen = steps * accumulated * batch
    data = trainer.train_dataset
    if data is not None and has_length(data) and not arguments.dataloader_drop_last:
        per_epoch = -(-len(data) // (accumulated * batch))
        epochs, more = divmod(steps, max(1, per_epoch))
        seen = epochs * len(data) + min(more * accumulated * batch, len(data))
    return {"forwards": passes * accumulated * steps, "examples": passes * seen}
