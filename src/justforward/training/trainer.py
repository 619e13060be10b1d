"""MeZO for any Hugging Face Trainer.

Only public hooks are overridden: the training loop, evaluation, checkpoints and resuming are the Trainer's own.
"""

from __future__ import annotations

import functools
import logging
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import find_batch_size, slice_tensors
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from justforward.compat import NO_FSDP
from justforward.optim import Estimate, MeZO, NoiseSource
from justforward.optim.distribution.ranks import Ranks
from justforward.optim.distribution.shards import shard
from justforward.optim.probes.closures import Copies, Shares
from justforward.optim.rules.base import Rule
from justforward.training.counting import count
from justforward.training.trajectory_trainer import TrajectoryMixin

logger = logging.getLogger(__name__)


class MeZOMixin(TrajectoryMixin):
    """Makes any Trainer subclass train with MeZO: `class MyTrainer(MeZOMixin, SomeTrainer): ...`.

    The loss is whatever the Trainer's `compute_loss` returns, evaluated twice per batch without gradients and
    without dropout. Learning rate, schedule, weight decay (none on biases and norms) and accumulation are those of
    `TrainingArguments`; its `seed` seeds the directions.

    Args:
        zo_eps: size of the probe.
        zo_samples: directions per step.
        zo_sides: 2 or 1; see MeZO.
        zo_split: every direction probes its own share of a batch; see MeZO.
        zo_shaping: what a step differences; see MeZO.
        zo_clip: what projected gradients are cut to; None: nothing.
        zo_rule: what is made of the estimates; None for SGD.
        zo_max_skipped: so many steps in a row with a loss that is not finite end the training.
        zo_rounding: how updates of 16-bit weights are rounded; see MeZO.
        zo_probe: how weights are moved to measure; see MeZO. With torch_compile "auto" is "copy": compiled models read
            weights where they are.
        noise: where directions come from; None for counter-based Gaussian noise.
        zo_direction_groups: into how many groups the ranks are split, which probe directions of their own; each group
            is given all data of a step.
        zo_check_steps: so often ranks compare checksums of their weights.
        model_placed: the model is where it is to be, and not to be moved to the device.

    Further arguments are TrajectoryMixin's (the log of the run, and checkpoints made of it) and the Trainer's.
    """

    def __init__(
        self,
        *args: Any,
        zo_eps: float = 1e-3,
        zo_samples: int = 1,
        zo_sides: int = 2,
        zo_split: bool = False,
        zo_shaping: str = "none",
        zo_clip: float | None = None,
        zo_rule: Rule | None = None,
        zo_max_skipped: int = 20,
        zo_rounding: str = "stochastic",
        zo_probe: str = "auto",
        noise: NoiseSource | None = None,
        zo_direction_groups: int = 1,
        zo_check_steps: int = 100,
        model_placed: bool = False,
        **kwargs: Any,
    ):
        self.model_placed = model_placed
        self.mezo_settings: dict[str, Any] = {
            "eps": zo_eps,
            "samples": zo_samples,
            "sides": zo_sides,
            "split": zo_split,
            "shaping": zo_shaping,
            "clip": zo_clip,
            "rule": zo_rule,
            "max_skipped": zo_max_skipped,
            "rounding": zo_rounding,
            "probe": zo_probe,
            "noise": noise,
            "direction_groups": zo_direction_groups,
            "check_every": zo_check_steps,
        }
        arguments = kwargs.get("args") or (args[1] if len(args) > 1 else None)
        if arguments is not None:
            if arguments.fp16:
                raise ValueError(
                    "fp16 scales gradients, and MeZO has none: load the model in 16 bits instead "
                    "(--load_float16 or --load_bfloat16)"
                )
            if arguments.torch_compile:
                if zo_probe in ("paired", "just_in_time"):
                    raise ValueError(
                        f"--torch_compile and --zo_probe {zo_probe} exclude each other: a compiled model reads weights "
                        "where they are; use --zo_probe copy (exact, a second copy of the weights) or in_place"
                    )
                self.mezo_settings["probe"] = "copy" if zo_probe == "auto" else zo_probe
            if arguments.fsdp:
                kwargs["save_trajectory"] = True  # a checkpoint is a mark in the log: no weights are gathered for it
                _shard(kwargs["model"] if "model" in kwargs else next(iter(args)), arguments)
                self.model_placed = True
            # More GPUs in one process would be wrapped in DataParallel, which replicates weights at every forward.
            arguments._n_gpu = min(arguments.n_gpu, 1)
        super().__init__(*args, **kwargs)
        # DistributedDataParallel synchronises gradients, and there are none; ranks exchange scalars instead.
        self.accelerator.prepare_model = functools.partial(
            self.accelerator.prepare_model, evaluation_mode=True, device_placement=not self.model_placed
        )
        self._started = time.perf_counter()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A MeZO over the trainable parameters."""
        if self.optimizer is None:
            model = model if model is not None else self.model
            assert model is not None
            decayed = set(self.get_decay_parameter_names(model))
            named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
            groups = [
                {"params": [x for x in named if x[0] in decayed], "weight_decay": self.args.weight_decay},
                {"params": [x for x in named if x[0] not in decayed], "weight_decay": 0.0},
            ]
            # accelerate wraps the optimiser without passing attributes through: keep our own reference.
            self.mezo = self.optimizer = MeZO(
                groups, lr=self.args.learning_rate, seed=self.args.seed, model=model, **self.mezo_settings
            )
            weights = sum(p.numel() * p.element_size() for _, p in named)
            if self.mezo.state_bytes > 0.01 * weights:
                share = 100 * self.mezo.state_bytes / weights
                size = self.mezo.state_bytes / 2**20
                logger.info("kept beside the trained weights: %.1f MiB, %.0f %% of their size", size, share)
        return self.optimizer

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.model_placed:
            super()._move_model_to_device(model, device)

    def get_train_dataloader(self) -> DataLoader:
        """As the Trainer's, but that the ranks of a group share the data of a step, and every group is given all."""
        ranks = Ranks.current(self.mezo_settings["direction_groups"])
        if ranks.groups == 1:
            return super().get_train_dataloader()
        accelerator: Any = self.accelerator
        prepare = accelerator.prepare_data_loader
        accelerator.prepare_data_loader = functools.partial(_prepare_for_group, accelerator, ranks)
        try:
            return super().get_train_dataloader()
        finally:
            accelerator.prepare_data_loader = prepare

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Two forward passes on one micro-batch; the optimiser's step applies what they measured."""
        assert self.mezo is not None
        model.eval()
        inputs = self._prepare_inputs(inputs)

        def closure() -> Tensor:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            assert isinstance(loss, Tensor)
            return loss

        if self.mezo.split:
            more: dict[str, Any] = {"shares": self.shares(model, inputs, self.mezo.samples)}
        else:
            more = {"paired": self.paired_closure(model, inputs), "copies": self.copies(model, inputs)}
        estimate = self.mezo.estimate(closure, weight=self.batch_weight(inputs), **more)
        loss = torch.tensor(estimate.loss, device=self.args.device)
        return loss / self.current_gradient_accumulation_steps

    def paired_closure(self, model: nn.Module, inputs: dict[str, Any]) -> Callable[[], Tensor] | None:
        """What evaluates both probes of this micro-batch in one forward; see `MeZO.estimate`. None: two forwards."""
        return None

    def copies(self, model: nn.Module, inputs: dict[str, Any]) -> Copies | None:
        """What evaluates the micro-batch at several directions in one pass; see `MeZO.estimate`. None: one by one."""
        return None

    def shares(self, model: nn.Module, inputs: dict[str, Any], count: int) -> Shares:
        """The micro-batch divided among directions: as many parts, of whole examples, each with a loss of its own."""
        size = find_batch_size(inputs)
        assert size is not None
        owners = divide(size, count)

        def alone(direction: int) -> Tensor | float:
            items = owners.count(direction)
            if not items:
                return 0.0
            first = owners.index(direction)
            with self.compute_loss_context_manager():
                some: Any = slice_tensors(inputs, slice(first, first + items))
                loss = self.compute_loss(model, some)
            assert isinstance(loss, Tensor)
            return loss * (items * count / size)

        return Shares(count, alone)

    def batch_weight(self, inputs: dict[str, Any]) -> float:
        """How many items the loss of this micro-batch averages; accumulated estimates are weighted by it."""
        return 1.0

    def counted(self) -> dict[str, int]:
        """Forward passes and examples so far; see `counting`."""
        if self.mezo is None:
            return {}
        groups = self.mezo.direction_groups
        return count(cast(Trainer, self), self.mezo.forwards_per_step, groups=groups)

    def skipped_facts(self) -> dict[str, int]:
        """For a result: steps that moved nothing."""
        return {} if self.mezo is None else {"skipped_steps": self.mezo.skipped, "zero_steps": self.mezo.zero_steps}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what MeZO knows to the Trainer's training logs."""
        if "loss" in logs and self.mezo is not None and self.mezo.last is not None:
            last: Estimate = self.mezo.last
            logs.pop("grad_norm", None)
            steps_per_second = self.state.global_step / (time.perf_counter() - self._started)
            logs |= {
                "projected_grad": round(last.projected_grad, 6),
                "skipped_steps": self.mezo.skipped,
                "zero_steps": self.mezo.zero_steps,
                "steps_per_second": round(steps_per_second, 4),
                "peak_memory_mib": round(peak_memory_mib()),
                **self.counted(),
            }
        super().log(logs, *args, **kwargs)


def divide(size: int, count: int) -> tuple[int, ...]:
    """The direction that each of this rank's examples probes: those of all ranks, one after the other, divided."""
    ranks = Ranks.current()
    return tuple((ranks.rank * size + i) * count // (ranks.size * size) for i in range(size))


def _shard(model: Any, arguments: TrainingArguments) -> None:
    """Spread the model over the ranks; accelerate's FSDP would expect gradients and an optimiser's state."""
    if arguments.world_size == 1:
        raise ValueError("--fsdp spreads a model over several processes, and there is one: start it with torchrun")
    shard(model, arguments.device)
    arguments.fsdp, arguments.fsdp_plugin_args = NO_FSDP, None


def _prepare_for_group(accelerator: Accelerator, ranks: Ranks, loader: DataLoader, **_: Any) -> DataLoader:
    """`Accelerator.prepare_data_loader`, with the ranks of one group in place of all."""
    return prepare_data_loader(
        loader,
        accelerator.device,
        num_processes=ranks.members,
        process_index=ranks.member,
        split_batches=accelerator.split_batches,
        put_on_device=accelerator.device_placement,
        rng_types=list(accelerator.rng_types or ()),
        dispatch_batches=accelerator.dispatch_batches,
        even_batches=accelerator.even_batches,
        use_seedable_sampler=accelerator.use_seedable_sampler,
        data_seed=accelerator.dataloader_config.data_seed,
        non_blocking=accelerator.non_blocking,
    )


class MeZOTrainer(MeZOMixin, Trainer):
    """The Hugging Face Trainer with MeZO as its optimiser."""


def peak_memory_mib() -> float:
    """Peak memory of this process so far: allocated on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
