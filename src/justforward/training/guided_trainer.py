"""Training along the guide: one forward pass a step, and now and then two more that measure how far to go."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from justforward.models.residual import find_stream
from justforward.optim.guided import Factors, Guided
from justforward.scoring import Scores
from justforward.scoring.guide import Guide, check
from justforward.training.checkpoint_trainer import CheckpointMixin
from justforward.training.counting import count
from justforward.training.objective_trainer import ObjectiveMixin
from justforward.training.objectives import Batch, ScoredObjective


class GuidedTrainer(ObjectiveMixin, CheckpointMixin, Trainer):
    """Moves the layers that add to the residual stream, in the blocks that require gradients; all else is frozen.

    Raises ValueError, in one line, for an objective, a model or a launch that has no guide.
    """

    def __init__(self, *args: Any, rounding: str = "stochastic", max_skipped: int = 20, **kwargs: Any):
        self.settings: dict[str, Any] = {"rounding": rounding, "max_skipped": max_skipped}
        self.guided: Guided | None = None
        self.checked = False
        arguments = kwargs.get("args") or (args[1] if len(args) > 1 else None)
        if arguments is not None:
            arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be wrapped in DataParallel
        super().__init__(*args, **kwargs)
        if not isinstance(self.objective, ScoredObjective):
            raise ValueError("--trainer guided needs a loss that is a function of scores: use --trainer zo")
        if self.args.world_size > 1:
            raise ValueError("--trainer guided trains in one process: start it without torchrun, or use --trainer zo")
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
        batch = self._planned(inputs)
        with self._calling(model):
            self.engine.guide = self.guide
            try:
                scores = self.engine.run(batch.plan, normalise=batch.normalise)
            finally:
                self.engine.guide = None
            loss, slopes = self._slopes(scores, batch)
            factors = self.guide.take(slopes)
            if not self.checked:
                last = self.guide.projections[-1].name
                deepest = self.guide.projections[-1].block == len(self.guide.stream.blocks) - 1
                if deepest:
                    own = {last: factors[last]}
                    check(self.guide, loss, own, functools.partial(self._at, batch, own))
                self.checked = True
            self.guided.estimate(loss, factors, functools.partial(self._at, batch, factors), float(batch.weight))
        return torch.tensor(loss, device=self.args.device) / self.current_gradient_accumulation_steps

    def _slopes(self, scores: Scores, batch: Batch) -> tuple[float, Tensor]:
        """The loss, and its derivative by every score: [T] float32."""
        objective: Any = self.objective
        with torch.enable_grad():
            values = scores.token_logprobs.detach().requires_grad_()
            loss = objective.evaluate(Scores(values, scores.lengths), batch).loss
            (slopes,) = torch.autograd.grad(loss, values)
        return float(loss.detach()), slopes

    def _at(self, batch: Batch, factors: Mapping[str, Factors], by: float) -> float:
        with self.guide.shifted(factors, by):
            return float(self.objective.measure(self.engine, batch).loss)

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
