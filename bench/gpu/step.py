"""A MeZO step against the textbook's and against its own two forwards, and its peak of memory over inference."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from bench.common import compare, report
from bench.gpu.where import Where
from bench.memory import forget_scratch
from bench.methods import GUIDED, Setting, _by_guide
from bench.workload import OPTIONS, Step, adapted, model_of, prompts_of, step_on
from justforward.models.residual import find_stream
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example

BF16 = torch.bfloat16
EXAMPLES = 16
LARGE_GIB = 40
"""Memory that the 13B shape's 26 GB of weights want, with the textbook's copies of them."""

SPLIT = ("grzo", "eggroll")
"""Methods that give every example a direction of its own."""


def measure(where: Where) -> None:
    """See the module; what matters most first."""
    small, large = where.pick(("1.3b", "13b"), ("thin", "tiny"))
    few, many = lengths(where)
    roomy = where.rehearsal or where.gib() >= LARGE_GIB
    if not roomy:
        print(f"the 13B shape is left out: {where.gib():.0f} GiB of memory", flush=True)
    full(where, small, (few, many))
    if roomy:
        full(where, large, (few,))
    adapters(where, small)
    own_directions(where, small)
    _release(where)
    guided(where, small)
    _release(where)
    if roomy:
        full(where, large, (many,))
    against_textbook(where, small, (few, many))
    if roomy:
        against_textbook(where, large, (few,))  # four passes over the weights and all logits: once is enough


def lengths(where: Where) -> tuple[int, int]:
    """Tokens of a prompt; its option is one more."""
    return where.pick((61, 399), (13, 29))


def full(where: Where, shape: str, tokens: Sequence[int]) -> None:
    """All parameters; prompts of so many tokens."""
    model = model_of(shape, BF16, where.device)
    for count in tokens:
        made = step_on(model, examples=EXAMPLES, tokens=count)
        what = f"OPT-{shape}, bf16, full, {EXAMPLES} x {count + 1} tokens"
        over_forwards(where, made, what)
        memory(where, made, what)
        del made
        made = step_on(model, examples=EXAMPLES, tokens=count, graphs=not where.rehearsal)
        over_forwards(where, made, f"{what}, CUDA graphs")
        memory(where, made, f"{what}, CUDA graphs")
        del made
    del model
    _release(where)


def against_textbook(where: Where, shape: str, tokens: Sequence[int]) -> None:
    """The reference's step, of all parameters."""
    model = model_of(shape, BF16, where.device)
    for count in tokens:
        made = step_on(model, examples=EXAMPLES, tokens=count)
        compare(
            f"step: textbook / ours, OPT-{shape}, bf16, full, {EXAMPLES} x {count + 1} tokens",
            {"ours": made.run, "textbook": made.textbook},
            runs=where.pick(5, 1),
            device=where.device,
            goal=">= 4",
        )
        del made
    del model
    _release(where)


def adapters(where: Where, shape: str) -> None:
    """LoRA and a prefix."""
    for method in ("lora", "prefix"):
        model = adapted(model_of(shape, BF16, where.device), method)
        for tokens in lengths(where):
            made = step_on(model, examples=EXAMPLES, tokens=tokens)
            what = f"OPT-{shape}, bf16, {method}, {EXAMPLES} x {tokens + 1} tokens"
            over_forwards(where, made, what)
            if method == "lora":  # a prefix is a cache, which is not recorded
                graphed = step_on(model, examples=EXAMPLES, tokens=tokens, graphs=not where.rehearsal)
                over_forwards(where, graphed, f"{what}, CUDA graphs")
                del graphed
            del made
        del model
        _release(where)


def own_directions(where: Where, shape: str) -> None:
    """A direction for each example, all in two forwards."""
    model = model_of(shape, BF16, where.device)
    for tokens, method in itertools.product(lengths(where), SPLIT):
        made = step_on(model, examples=EXAMPLES, tokens=tokens, zo_method=method)
        over_forwards(where, made, f"OPT-{shape}, bf16, {method}, {EXAMPLES} x {tokens + 1} tokens")
        del made


def over_forwards(where: Where, made: Step, what: str) -> None:
    """A whole step over the two forwards that it cannot do without, and over the same as graphs where it has some."""
    ways = {"two forwards": made.two_forwards, "step": made.run}
    if made.mezo.graphs is not None:
        ways["two replays"] = made.two_replays
    compare(
        f"step / two forwards: {what}",
        ways,
        runs=where.pick(9, 2),
        device=where.device,
        goal="<= 1.05",
        paired=made.measure_pair is not None,
    )


def memory(where: Where, made: Step, what: str) -> None:
    """Peak of the allocator while it steps, over that while it evaluates the same batch."""
    forget_scratch(made)
    gc.collect()
    evaluation = where.peak_mib(made.measure)
    step = where.peak_mib(made.run)
    report(
        f"peak memory: {what}",
        ratio={"step/evaluation": round(step / evaluation, 4)},
        goal="<= 1.02",
        mib={"step": round(step, 1), "evaluation": round(evaluation, 1)},
        device=where.device,
    )


def guided(where: Where, shape: str) -> None:
    """A guided step of the last blocks, which is one forward, against two."""
    model = model_of(shape, BF16, where.device)
    upper = len(find_stream(model).blocks) - where.pick(3, 1)
    for name, p in model.named_parameters():
        p.requires_grad_(any(int(word) >= upper for word in name.split(".") if word.isdigit()))
    engine, objective = ScoringEngine(model), Classification()
    for tokens in lengths(where):
        prompts = prompts_of(EXAMPLES, model.get_input_embeddings().num_embeddings, tokens)  # type: ignore[operator]
        rows = [Example(tuple(Row((*p, option), len(p)) for option in OPTIONS), 0) for p in prompts]
        setting = Setting(model, engine, objective, [], [], [], forwards=1 << 30)
        step, _, _ = _by_guide(setting, GUIDED, 1e-6, 0)
        for _ in range(6):  # behind the first steps, which all probe
            step(rows)
        batch: Any = objective.batch(engine, rows)

        @torch.no_grad()
        def two_forwards(batch: Any = batch) -> None:
            objective.measure(engine, batch)
            objective.measure(engine, batch)

        compare(
            f"step / two forwards: OPT-{shape}, bf16, guided, {EXAMPLES} x {tokens + 1} tokens",
            {"two forwards": two_forwards, "step": lambda step=step, rows=rows: step(rows)},
            runs=where.pick(9, 2),
            device=where.device,
            goal="<= 1.05",
        )


def _release(where: Where) -> None:
    gc.collect()
    where.empty_cache()
