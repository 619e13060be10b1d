"""Which rows are used: train, development, demonstration and evaluation sets, by seed.

A set is the head of `np.random.RandomState(seed).permutation(n_rows)`: the draws of the published runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

logger = logging.getLogger(__name__)

_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class TrainSet:
    """Row indices of one train (or demonstration) set and of its development set, and the seed that drew them."""

    seed: int
    train: list[int]
    dev: list[int]


def sample_indices(n_rows: int, num: int, seed: int, exclude: int | None = None) -> list[int]:
    """`num` different row indices below `n_rows` (all, in random order, where there are fewer), never `exclude`."""
    if num == 0:
        return []
    head = np.random.RandomState(seed).permutation(n_rows)[: num + 1].tolist()
    return [index for index in head if index != exclude][:num]


def eval_indices(n_rows: int, num_eval: int | None, seed: int) -> list[int]:
    """Rows to evaluate: `num_eval` of them, drawn by `seed`, or with None all in their order.

    Raises ValueError for a `num_eval` below 1 or a seed out of range.
    """
    if num_eval is None:
        return list(range(n_rows))
    _check_counts(at_least=1, num_eval=num_eval)
    _check_seed("the seed of the evaluation set", seed)
    if num_eval > n_rows:
        logger.warning("num_eval is %d, but there are %d rows: all of them are used", num_eval, n_rows)
    return sample_indices(n_rows, num_eval, seed)


def train_sets(
    n_rows: int,
    *,
    num_train: int,
    num_dev: int | None,
    num_train_sets: int | None,
    train_set_seed: int | None,
    num_eval_samples: int,
) -> list[TrainSet]:
    """The train sets of a run, out of `n_rows` training rows.

    `train_set_seed` gives one set; else `num_train_sets` gives sets of the seeds 0, 1, ...; with neither, each of the
    `num_eval_samples` has a demonstration set of its own (`one_per_eval_seeds`). The development rows come after the
    training rows in the same draw, so they are disjoint. Where the rows do not suffice, development keeps at most half
    of them and training the rest.

    Raises ValueError for counts or seeds out of range, for development rows without a train set flag, and for rows of
    a task that has none to train on.
    """
    _check_counts(at_least=0, num_train=num_train, num_dev=num_dev or 0)
    if n_rows == 0 and num_train + (num_dev or 0) > 0:
        raise ValueError("the task has no rows to train on or to show: leave --num_train and --num_dev out")
    seeds = _seeds(num_train_sets, train_set_seed, num_eval_samples, with_dev=bool(num_dev))
    train, dev = _sizes(n_rows, num_train, num_dev or 0)
    drawn = ((seed, sample_indices(n_rows, train + dev, seed)) for seed in seeds)
    return [TrainSet(seed, rows[:train], rows[train:]) for seed, rows in drawn]


def one_per_eval_seeds(num_eval_samples: int) -> list[int]:
    """Seeds of the demonstration sets where each evaluation sample has its own."""
    return np.random.RandomState(0).randint(0, 10000, num_eval_samples).tolist()


def _seeds(
    num_train_sets: int | None, train_set_seed: int | None, num_eval_samples: int, *, with_dev: bool
) -> Iterable[int]:
    if train_set_seed is not None:
        _check_seed("train_set_seed", train_set_seed)
        if num_train_sets is not None:
            logger.warning("train_set_seed is given, so num_train_sets (%d) is not used", num_train_sets)
        return [train_set_seed]
    if num_train_sets is not None:
        _check_counts(at_least=1, num_train_sets=num_train_sets)
        return range(num_train_sets)
    if with_dev:
        raise ValueError("num_dev needs one train set for all: give train_set_seed (such as 0) or num_train_sets")
    return one_per_eval_seeds(num_eval_samples)


def _sizes(n_rows: int, num_train: int, num_dev: int) -> tuple[int, int]:
    """(train, dev) sizes that the rows can serve."""
    if num_train + num_dev <= n_rows:
        return num_train, num_dev
    dev = min(num_dev, n_rows // 2)
    train = min(num_train, n_rows - dev)
    logger.warning(
        "num_train %d and num_dev %d ask for more than the %d training rows: using %d to train, %d for development",
        *(num_train, num_dev, n_rows, train, dev),
    )
    return train, dev


def _check_counts(*, at_least: int, **counts: int) -> None:
    for name, count in counts.items():
        if count < at_least:
            raise ValueError(f"{name} must be at least {at_least}, not {count}")


def _check_seed(name: str, seed: int) -> None:
    if not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"{name} must be between 0 and {_LARGEST_SEED}, not {seed}")
