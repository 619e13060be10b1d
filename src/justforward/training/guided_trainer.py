"""Training along the guide: one forward pass a step, and now and then two more that measure how far to go."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Trainer

from justforward.models.residual import find_stream
from justforward.optim.guided import Factors, Guided
from justforward.scoring import Scores, ScoringEngine
from justforward.scoring.guide import Guide, check
from justforward.training.checkpoint_trainer import CheckpointMixin
from justforward.training.counting import count
from justforward.training.objective_trainer import ObjectiveMixin
from justforward.training.objectives import Batch, ScoredObjective


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
    objective: ScoredObjective,
    engine: ScoringEngine,
    guide: Guide,
    batch: Batch,
    factors: Mapping[str, Factors],
    by: float,
) -> float:
    """The loss of a batch at theta + by D."""
    with guide.shifted(factors, by):
        return float(objective.measure(engine, batch).loss)


class GuidedTrainer(ObjectiveMixin, CheckpointMixin, Trainer):
    """Moves the layers that add to the residual stream, in the blocks that require gradients; all else is frozen.

    Raises ValueError, in one line, for an objective or a model that has no guide.
    """

    def __init__(self, *args: Any, rounding: str = "stochastic", max_skipped: int = 20, **kwargs: Any):
        self.settings: dict[str, Any] = {"rounding": rounding, "max_skipped": max_skipped}
        self.guided: Guided | None = None
        arguments = kwargs.get("args") or (args[1] if len(args) > 1 else None)
        if arguments is not None:
            arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be wrapped in DataParallel
        super().__init__(*args, **kwargs)
        if not isinstance(self.objective, ScoredObjective):
            raise ValueError("--trainer guided needs a loss that is a function of scores: use --trainer zo")
        stream = find_stream(self.model)
        moved = {name for name, p in self.engine.model.named_parameters() if p.requires_grad}
        self.guide = Guide(stream, [one for one in stream.projections if one.name in moved])
        if not self.guide.projections:
            raise ValueError("--trainer guided: none of the blocks to train adds to the stream: use --trainer zo")
        own = {one.name for one in self.guide.projections}
        for name, p in self.engine.model.named_parameters():
            p.requires_grad_(name in own)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """A Guided over the guided layers' weights."""
        if self.optimizer is None:
            assert self.model is not None
            pairs = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            group = {"params": pairs, "weight_decay": self.args.weight_decay}
            self.guided = self.optimizer = Guided(
                [group], self.args.learning_rate, seed=self.args.seed, **self.settings
            )
        return self.optimizer

    @torch.no_grad()
    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One forward pass on a micro-batch, which the guide watches; the optimiser's step applies what it saw."""
        assert self.guided is not None
        model.eval()
        batch, objective = self._planned(inputs), cast(ScoredObjective, self.objective)
        with self._calling(model):
            loss, factors = watched(objective, self.engine, self.guide, batch)
            at = functools.partial(loss_at, objective, self.engine, self.guide, batch)
            last = self.guide.projections[-1]
            beginning = self.guided.progress["forwards"] == 0 and math.isfinite(loss)
            if beginning and last.block == len(self.guide.stream.blocks) - 1:
                own = {last.name: factors[last.name]}
                check(self.guide, loss, own, functools.partial(at, own))
            self.guided.estimate(loss, factors, functools.partial(at, factors), float(batch.weight))
        return torch.tensor(loss, device=self.args.device) / self.current_gradient_accumulation_steps

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
        super().log(logs, *args, **kwargs)
