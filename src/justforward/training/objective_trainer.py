"""Trainers on objectives, evaluated through the scoring engine: by MeZO, and by backpropagation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import EvalPrediction, Trainer

from justforward.optim.directions.base import Owners
from justforward.optim.distribution.shards import is_sharded
from justforward.optim.probes.closures import Copies, Shares
from justforward.optim.probes.graphs import Graphs
from justforward.scoring import ScoringEngine
from justforward.training.checkpoint_trainer import CheckpointMixin
from justforward.training.counting import count
from justforward.training.objectives import Batch, Example, Measured, Objective, ScoredObjective
from justforward.training.trainer import MeZOMixin, divide

logger = logging.getLogger(__name__)

NOT_FINITE = "not_finite"
"""In an evaluation's metrics: how many examples have a loss that is not finite."""

# A mixin stands before a Trainer in the bases; to the type checker it is one.
_Base = Trainer if TYPE_CHECKING else object


class ObjectiveMixin(_Base):
    """A Trainer on `Example`s whose loss is an objective evaluated through the scoring engine."""

    def __init__(self, *args: Any, objective: Objective, engine: ScoringEngine, **kwargs: Any):
        self.objective, self.engine = objective, engine
        arguments = kwargs.get("args") or (args[1] if len(args) > 1 else None)
        if arguments is not None and arguments.ddp_broadcast_buffers is None:
            # It would be done at every forward, and ranks do not make equally many. Nothing here changes buffers.
            arguments.ddp_broadcast_buffers = False
        if arguments is not None:
            arguments.logging_nan_inf_filter = False  # it would log another loss in the place of one that is not finite
        super().__init__(*args, data_collator=collate, compute_metrics=_accuracy, **kwargs)
        self.model_accepts_loss_kwargs = False
        if engine.prefix_length and self.args.world_size > 1 and not isinstance(self, MeZOMixin):
            raise ValueError("--prefix_tuning with --trainer regular trains in one process: use NUM_GPU=1, or LoRA")

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's; but FSDP works on CPU processes too, where accelerate leaves its plugin aside."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and self.accelerator.distributed_type == DistributedType.MULTI_CPU:
            state = self.accelerator.state
            state.distributed_type = DistributedType.FSDP
            settings: Any = self.args.fsdp_plugin_args or {}
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**settings)
            self.is_fsdp_enabled = True

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; a sharded model is gathered into one ordinary checkpoint."""
        assert isinstance(self.model, nn.Module)
        # MeZO's checkpoints on the way are marks in its log.
        if not (self.is_fsdp_enabled or (is_sharded(self.model) and not _internal_call)):
            super().save_model(output_dir, _internal_call)
            return
        gathered = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        self._save(output_dir, state_dict=gathered)
        self.accelerator.wait_for_everyone()

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        """The objective's loss; the plan is made once and kept with the inputs for the next call."""
        measured = self._measured(model, inputs)
        return (measured.loss, measured.correct) if return_outputs else measured.loss

    def _measured(self, model: nn.Module, inputs: dict[str, Any]) -> Measured:
        with self._calling(model):
            return self.objective.measure(self.engine, self._planned(inputs))

    @contextmanager
    def _calling(self, model: nn.Module) -> Iterator[None]:
        self.engine.caller = model
        try:
            yield
        finally:
            self.engine.caller = self.engine.model

    def paired_closure(self, model: nn.Module, inputs: dict[str, Any]) -> Callable[[], Tensor] | None:
        """The objective on the doubled batch, where that fits the token budget."""
        objective, batch = self.objective, self._planned(inputs)
        if not isinstance(objective, ScoredObjective) or self.engine.fits(batch.plan) < 2:
            return None

        def closure() -> Tensor:
            with self._calling(model), self.compute_loss_context_manager():
                return objective.measure_pair(self.engine, batch)

        return closure

    def copies(self, model: nn.Module, inputs: dict[str, Any]) -> Copies | None:
        """The objective on several copies of the batch, as many as fit the token budget."""
        objective, batch = self.objective, self._planned(inputs)
        if not isinstance(objective, ScoredObjective):
            return None

        def losses(count: int, owners: Owners) -> Tensor:
            with self._calling(model), self.compute_loss_context_manager():
                return objective.measure_copies(self.engine, batch, count, owners)

        return Copies(self.engine.fits(batch.plan), losses)

    def shares(self, model: nn.Module, inputs: dict[str, Any], count: int) -> Shares:
        """The batch divided among directions by examples, evaluated in one pass where the objective is of scores."""
        objective, examples = self.objective, inputs["examples"]
        owners = divide(len(examples), count)
        whole = self._planned(inputs)

        def alone(direction: int) -> Tensor | float:
            own = [e for e, owner in zip(examples, owners, strict=True) if owner == direction]
            if not own:
                return 0.0
            part = objective.batch(self.engine, own)
            with self._calling(model), self.compute_loss_context_manager():
                return objective.measure(self.engine, part).loss * (part.weight * count / whole.weight)

        if not isinstance(objective, ScoredObjective):
            return Shares(count, alone)
        scored: Any = objective
        batch = scored.batch(self.engine, examples, owners)

        def together(told: Owners) -> Tensor:
            with self._calling(model), self.compute_loss_context_manager():
                return scored.measure_shares(self.engine, batch, count, told)

        return Shares(count, alone, together)

    def batch_weight(self, inputs: dict[str, Any]) -> float:
        """The number of examples or tokens that the objective averages."""
        return float(self._planned(inputs).weight)

    def _planned(self, inputs: dict[str, Any]) -> Batch:
        if "batch" not in inputs:
            assert isinstance(self.model, nn.Module)
            self.engine.one_forward = bool(self.is_fsdp_enabled) or is_sharded(self.model)
            inputs["batch"] = self.objective.batch(self.engine, inputs["examples"])
            self.engine.one_forward = False
        return inputs["batch"]

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Evaluation of a batch: its loss, and which of its examples are right (1, 0, or NaN where none is chosen)."""
        with torch.no_grad():
            measured = self._measured(model, inputs)
        right = None if measured.correct is None else measured.correct.float()
        if right is not None and measured.losses is not None:
            right = right.where(measured.losses.isfinite(), torch.nan)
        return measured.loss, right, inputs["labels"]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's; says so where losses are not finite."""
        metrics = super().evaluate(*args, **kwargs)
        for name, loss in metrics.items():
            if name.endswith("_loss") and not np.isfinite(loss):
                count = metrics.get(f"{name.removesuffix('_loss')}_{NOT_FINITE}")
                examples = "" if count is None else f", in {count} examples, which count as wrong"
                logger.warning("step %d: %s is %s%s", self.state.global_step, name, loss, examples)
        return metrics

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not estimated: what is fed depends on the plan."""
        return 0


class ObjectiveTrainer(ObjectiveMixin, CheckpointMixin, Trainer):
    """Backpropagation on an objective."""

    def counted(self) -> dict[str, int]:
        """Forward passes and examples so far; each pass went back as well."""
        return count(self, 1)

    def skipped_facts(self) -> dict[str, int]:
        """For a result: no step of a training by gradients is skipped."""
        return {}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was counted to the training logs."""
        super().log(logs | self.counted() if "loss" in logs else logs, *args, **kwargs)


class ObjectiveMeZOTrainer(ObjectiveMixin, MeZOMixin, Trainer):
    """MeZO on an objective.

    Args:
        zo_cuda_graphs: the passes of probes are recorded; ValueError where the model is not on one NVIDIA GPU.
    """

    def __init__(self, *args: Any, engine: ScoringEngine, zo_cuda_graphs: bool = False, **kwargs: Any):
        self.graphs = Graphs(engine.model) if zo_cuda_graphs else None
        if zo_cuda_graphs and len({p.device for p in engine.model.parameters()}) > 1:
            raise ValueError("CUDA graphs are of a model on one GPU, and this one is spread")
        if zo_cuda_graphs and (engine.device.type != "cuda" or torch.version.cuda is None):
            raise ValueError("CUDA graphs are for an NVIDIA GPU, and the model is on none")
        super().__init__(*args, engine=engine, **kwargs)
        self.mezo_settings["graphs"] = self.graphs

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As MeZO's; its batches alone are padded for graphs."""
        self.engine.graphs = self.graphs
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self.engine.graphs = None

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; the graphs' memory is given back at the end."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.graphs is not None:
                logger.info("CUDA graphs: %d recorded, %d replays", self.graphs.made, self.graphs.replayed)
                self.graphs.recorded.clear()


def _accuracy(evaluated: EvalPrediction) -> dict[str, float]:
    """The share that is right; and how many have no finite loss, if any."""
    right = np.asarray(evaluated.predictions)
    bad = int(np.isnan(right).sum())
    return {"accuracy": float(np.mean(np.nan_to_num(right))), **({NOT_FINITE: bad} if bad else {})}


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch of examples; `labels` lets the Trainer see the batch's size."""
    return {"examples": list(examples), "labels": torch.tensor([e.label for e in examples])}
