"""Checkpoints to rely on, in any Hugging Face Trainer: sealed when saved, and the best one found where it lies.

The Trainer remembers its best checkpoint as a path, which is another one, or none, once a run was moved or copied. Here
its name counts, in the folder of the checkpoint that the training goes on from.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from justforward.optim.distribution.ranks import gathered
from justforward.training.checkpoints import best_of, damage, seal

logger = logging.getLogger(__name__)

_Base = Trainer if TYPE_CHECKING else object


class CheckpointMixin(_Base):
    """Seals the checkpoints of a Trainer, and loads no best checkpoint but its own run's, whole."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.continued: Path | None = None
        # Before all others: one of them may end the training where it begins, or where it saves.
        kwargs["callbacks"] = [_Keeper(self), *(kwargs.get("callbacks") or [])]
        super().__init__(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(self.args.output_dir or ".") or True
        self.continued = Path(resume_from_checkpoint) if isinstance(resume_from_checkpoint, str) else None
        log, quiet = logging.getLogger("transformers.trainer"), _NotOfPaths()
        log.addFilter(quiet)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            log.removeFilter(quiet)

    def sound(self, best: Path) -> Path:
        """The best checkpoint, or what was put in its place. Raises ValueError, on every rank, where it is lost."""
        wrong = next((found for found in gathered(damage(best, weights_only=True)) if found), None)
        if wrong is None:
            return best
        rebuilt = self.rebuilt(best)
        if rebuilt is None:
            raise ValueError(
                f"{best} is the best checkpoint of this run, and {wrong}: put it back as it was, or give "
                "--resume_from_checkpoint with one from before it, or --overwrite_output_dir to train anew"
            )
        logger.warning("%s is the best checkpoint of this run, and %s: it is taken from the log", best, wrong)
        return rebuilt

    def rebuilt(self, best: Path) -> Path | None:
        """What takes the place of a best checkpoint that is damaged or gone; None where nothing can."""
        return None

    def _load_best_model(self) -> None:
        self.sound(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()


class _NotOfPaths(logging.Filter):
    """Keeps back what transformers says of a best checkpoint's path: it is looked for by its name."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "recorded in the resumed state" not in record.getMessage()


class _Keeper(TrainerCallback):
    def __init__(self, trainer: CheckpointMixin):
        self.trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The state of a continued run has the best checkpoint where it lies now."""
        continued = self.trainer.continued
        name = best_of(continued) if continued is not None and args.load_best_model_at_end else None
        if continued is None or name is None:
            return
        output = Path(args.output_dir or ".")
        folder = output if continued.parent.resolve() == output.resolve() else continued.parent
        state.best_model_checkpoint = str(self.trainer.sound(folder / name))

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Seal the checkpoint, once every rank has written its part."""
        gathered(None)
        if args.should_save:
            seal(Path(args.output_dir or ".") / f"checkpoint-{state.global_step}")
