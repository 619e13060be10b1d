"""How few shapes batches come to when they are planned for CUDA graphs, and how many tokens that feeds more.

Run: python -m bench.shapes

Batches of 16 examples with lengths drawn as those of tasks are: two one-token options of each prompt, or whole texts.
A figure has the share of passes whose shape is not among the last that are kept, and so is recorded anew. No model is
run.
"""

from __future__ import annotations

import random

from bench.common import report
from justforward.optim.probes.graphs import MOST
from justforward.scoring.plan import make_plan, rounded
from justforward.scoring.prompts import Row

BATCHES, EXAMPLES, TOKEN_BUDGET = 500, 16, 16384

LENGTHS = {
    "SST-2": (3.2, 0.45, 6, 70),
    "RTE": (4.4, 0.5, 30, 300),
    "BoolQ": (5.0, 0.5, 50, 500),
    "whole texts": (5.4, 0.7, 30, 1024),
}
"""Mean and deviation of the logarithm of a prompt's tokens, and the least and most of them."""


def batch(name: str, chance: random.Random) -> list[Row]:
    """Rows of random tokens."""
    mean, deviation, least, most = LENGTHS[name]
    rows: list[Row] = []
    for _ in range(EXAMPLES):
        length = int(min(most, max(least, chance.lognormvariate(mean, deviation))))
        tokens = tuple(chance.randrange(10, 50_000) for _ in range(length))
        rows += [Row(tokens, 1)] if name == "whole texts" else [Row((*tokens, o), length) for o in (8, 9)]
    return rows


def measure(name: str) -> None:
    """One figure."""
    chance, kept = random.Random(0), dict[object, None]()
    passes = anew = fed = plain = 0
    for _ in range(BATCHES):
        rows = batch(name, chance)
        plan = make_plan(rows, token_budget=TOKEN_BUDGET, share_prefix=False, few_shapes=True)
        plain += make_plan(rows, token_budget=TOKEN_BUDGET, share_prefix=False).fed_tokens
        fed, passes = fed + plan.fed_tokens, passes + len(plan.forwards)
        for forward in plan.forwards:
            shape = forward.input_ids.shape, rounded(int(forward.keep.sum()))
            anew += shape not in kept
            kept.pop(shape, None)
            kept[shape] = None
            if len(kept) > MOST:
                kept.pop(next(iter(kept)))
    ratio = {"recorded/passes": round(anew / passes, 4), "fed/plain": round(fed / plain, 3)}
    report(f"shapes of batches: {name}", ratio=ratio, passes=passes, examples=EXAMPLES)


if __name__ == "__main__":
    for each in LENGTHS:
        measure(each)
