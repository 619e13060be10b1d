"""Training along the guide: one forward pass a step, and now and then two more that measure how far to go."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from justforward.models.fingerprint import fingerprint
from justforward.models.residual import find_stream
from justforward.noise import NOISE_VERSION
from justforward.optim.factors import Factors
from justforward.optim.guided import Direction, Guided, Shifted
from justforward.optim.log import GUIDED_FILE_NAME, read
from justforward.scoring import Scores, ScoringEngine
from justforward.scoring.guide import Guide, check
from justforward.training.checkpoint_trainer import CheckpointMixin
from justforward.training.counting import count
from justforward.training.objective_trainer import ObjectiveMixin
from justforward.training.objectives import Batch, Example, Objective, ScoredObjective, rows_fingerprint
from justforward.training.trajectory_trainer import LogCallback
from justforward.trajectory.recording import describe_schedule, describe_steps


@torch.no_grad()
def watched(
    objective: ScoredObjective, engine: ScoringEngine, guide: Guide, batch: Batch
) -> tuple[float, dict[str, Factors]]:
    """One pass over a batch: its loss, and the direction of every guided layer."""
    engine.guide = guide
    try:
        scores = engine.run(batch.plan, normalise=batch.normalise)
    finally:
        engine.guide = None
    with torch.enable_grad():  # of the scores alone, a few numbers for each row
        values = scores.token_logprobs.detach().requires_grad_()
        loss = objective.evaluate(Scores(values, scores.lengths), batch).loss
        (slopes,) = torch.autograd.grad(loss, values)
    return float(loss.detach()), guide.take(slopes)


@torch.no_grad()
def loss_at(
    objective: Objective, engine: ScoringEngine, guide: Guide, batch: Batch, direction: Direction, by: float
) -> float:
    """The loss of a batch at theta + by D."""
    with guide.shifted(direction, by):
        return float(objective.measure(engine, batch).loss)


class GuidedTrainer(ObjectiveMixin, CheckpointMixin, Trainer):
    """Moves the layers that add to the residual stream, in the blocks that require gradients; all else is frozen.

    Args:
        rounding, max_skipped, noise: see Guided.
        coefficients: whether what each block's direction is worth is measured; see Guided's `parts`.
        run_facts: what else pins the run, JSON values for the log's header.
        logged: a log's records, which are applied in place of measuring; nothing is logged then.

    Raises ValueError, in one line, for an objective or a model that has no guide.
    """

    def __init__(
        self,
        *args: Any,
        rounding: str = "stochastic",
        max_skipped: int = 20,
        coefficients: bool = False,
        noise: float = 0.0,
        run_facts: Mapping[str, Any] | None = None,
        logged: Sequence[Sequence[float]] | None = None,
        **kwargs: Any,
    ):
        self.settings: dict[str, Any] = {"rounding": rounding, "max_skipped": max_skipped, "noise": noise}
        self.weighs, self.run_facts, self.logged = coefficients, dict(run_facts or {}), logged
        self.guided: Guided | None = None
        self.base = ""
        arguments = kwargs.get("args") or (args[1] if len(args) > 1 else None)
        if arguments is not None:
            arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be wrapped in DataParallel
        super().__init__(*args, **kwargs)
        scored = self.objective if isinstance(self.objective, ScoredObjective) else None
        scored = scored or getattr(self.objective, "guide", None)
        if scored is None:
            raise ValueError("--trainer guided needs a loss that is a function of scores: use --trainer zo")
        self.scored: ScoredObjective = scored
        stream = find_stream(self.model)
        moved = {name for name, p in self.engine.model.named_parameters() if p.requires_grad}
        self.guide = Guide(stream, [one for one in stream.projections if one.name in moved])
        if not self.guide.projections:
            raise ValueError("--trainer guided: none of the blocks to train adds to the stream: use --trainer zo")
        own = {one.name for one in self.guide.projections}
        for name, p in self.engine.model.named_parameters():
            p.requires_grad_(name in own)
        self._log = LogCallback(self)
        self.add_callback(self._log)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        assert isinstance(self.model, nn.Module)
        self.base = fingerprint(self.model)
        try:
            return super().train(*args, **kwargs)
        finally:
            self._log.close()

    @property
    def log_path(self) -> Path:
        """Where the run is logged."""
        return Path(self.args.output_dir or ".") / GUIDED_FILE_NAME

    @property
    def logged_optimizer(self) -> Guided | None:
        """What appends to the log; None where a log is replayed."""
        return self.guided if self.logged is None else None

    def header(self) -> dict[str, Any]:
        """What pins the run."""
        guided, schedule = self.guided, describe_schedule(self.args, self.state.max_steps)
        assert guided is not None
        told = {
            "rows": rows_fingerprint(cast(Sequence[Example], self.train_dataset)),
            "noise": f"guided {NOISE_VERSION}",
            "shares": {"coefficients": self.weighs, "noise": self.settings["noise"]},
            **self.run_facts,
        }
        header = describe_steps(guided, schedule, self.base, told)
        if self.log_path.exists():  # a run may go on by a command in other words
            header["command"] = read(self.log_path).header.get("command")
        return header

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A Guided over the guided layers' weights."""
        if self.optimizer is None:
            assert self.model is not None
            pairs = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            group = {"params": pairs, "weight_decay": self.args.weight_decay}
            parts = {one.name: one.block for one in self.guide.projections} if self.weighs else None
            self.guided = self.optimizer = Guided(
                [group], self.args.learning_rate, seed=self.args.seed, parts=parts, **self.settings
            )
            self.guided.logged = self.logged
        return self.optimizer

    @torch.no_grad()
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward pass on a micro-batch, which the guide watches; the optimiser's step applies what it saw."""
        assert self.guided is not None
        model.eval()
        batch, metric = self._batches(inputs)
        with self._calling(model):
            loss, factors = watched(self.scored, self.engine, self.guide, batch)
            at = functools.partial(loss_at, self.scored, self.engine, self.guide, batch)
            last = self.guide.projections[-1]
            beginning = self.guided.progress["forwards"] == 0 and math.isfinite(loss)
            if beginning and last.block == len(self.guide.stream.blocks) - 1:
                own = {last.name: factors[last.name]}
                check(self.guide, loss, own, functools.partial(at, own))
            self.guided.estimate(loss, factors, at, float(batch.weight), metric)
        return torch.tensor(loss, device=self.args.device) / self.current_gradient_accumulation_steps

    def _batches(self, inputs: dict[str, Any]) -> tuple[Batch, Shifted | None]:
        """The rows whose likelihood guides, and what measures the metric that counts in its place, if one does."""
        planned = self._planned(inputs)
        if self.scored is self.objective:
            return planned, None
        batch = self.scored.batch(self.engine, inputs["examples"])
        return batch, functools.partial(loss_at, self.objective, self.engine, self.guide, planned)

    def counted(self) -> dict[str, int]:
        """Forward passes and examples so far, probes included; those of the start-up check are not."""
        per_step = count(self, 1)
        if self.guided is None or not per_step["forwards"]:
            return per_step
        passes = self.guided.progress["forwards"]
        return {"forwards": passes, "examples": round(per_step["examples"] * passes / per_step["forwards"])}

    def skipped_facts(self) -> dict[str, int]:
        """For a result: steps that moved nothing."""
        return {} if self.guided is None else {"skipped_steps": self.guided.progress["skipped"]}

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was measured to the training logs."""
        if "loss" in logs and self.guided is not None:
            logs.pop("grad_norm", None)
            found = self.guided.progress
            logs |= {
                "step_length": round(found["length"], 6),
                "slope_share": round(self.guided.slope_share, 4),
                "skipped_steps": found["skipped"],
                **self.counted(),
            }
            if self.scored is not self.objective:
                logs["agreement"] = round(self.guided.agreement, 4)
            if self.guided.coefficients is not None:
                fitted = self.guided.coefficients.fitted(found["told"])
                logs |= {f"coefficient_{part}": round(value, 4) for part, value in fitted.items()}
        super().log(logs, *args, **kwargs)
