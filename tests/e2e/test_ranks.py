"""Several processes (gloo, CPU) hold one optimiser's state to one another's: what they check is in support/ranks.py.

Launches are slow: one for each number of ranks makes all checks of that many.
"""

import functools
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from support import ranks
from support.forking import TORCHRUN, Forked

TRAJECTORIES = [(2, 1, 1), (4, 1, 1), (4, 4, 1), (4, 4, 4), (4, 4, 2), (2, 3, 2)]
CHECKS = {
    2: [
        ["continued"],
        ["methods"],
        ["sharded"],
        ["tensor_parallel"],
        *(["trajectory", s, g] for n, s, g in TRAJECTORIES if n == 2),
    ],
    3: [["uneven"], ["corrupted", 0], ["corrupted", 2]],
    4: [["trajectory", s, g] for n, s, g in TRAJECTORIES if n == 4],
}
"""By the number of ranks: the checks with their arguments."""


@functools.cache
def outcomes(count: int) -> Path:
    """A folder with what came of every check on so many ranks, by its words."""
    folder = Path(tempfile.mkdtemp(prefix="ranks-"))
    command = [sys.executable, *TORCHRUN, "--standalone", "--nproc_per_node", str(count)]
    command += ["-m", "support.ranks", str(folder), json.dumps(CHECKS[count])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = Forked(command, folder, environment, folder / "stdout.txt", folder / "stderr.txt")
    try:
        ran.wait(timeout=300)
    finally:
        ran.terminate()
    return folder


def together(count: int, *words: str | int) -> Path:
    """Fail unless the check has passed on all of `count` ranks; what it left."""
    folder = outcomes(count) / "-".join(map(str, words))
    for rank in range(count):
        told = folder / f"{rank}.txt"
        assert told.is_file(), (folder.parent / "stderr.txt").read_text()[-4000:]
        assert told.read_text() == "passed", f"rank {rank}: {told.read_text()}"
    return folder


@pytest.mark.parametrize(("count", "samples", "groups"), TRAJECTORIES)
def test_the_trajectory_does_not_depend_on_the_number_of_ranks(tmp_path, count, samples, groups):
    ranks.trajectory(tmp_path, samples, 1)
    left = together(count, "trajectory", samples, groups)
    one, many = (torch.load(folder / "trajectory.pt", weights_only=True) for folder in (tmp_path, left))
    for a, b in zip(one["grads"], many["grads"], strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=2e-4)
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, many["weights"][name], atol=1e-5)


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    ranks.methods(folder)
    left = together(2, "methods")
    return [torch.load(place / "methods.pt", weights_only=True) for place in (folder, left)]


@pytest.mark.parametrize("method", ranks.METHODS)
def test_two_ranks_train_by_any_method_as_one_does(ends, method):
    one, two = (found[method] for found in ends)
    for a, b in zip(one["grads"], two["grads"], strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, two["weights"][name], atol=1e-4)


def test_ranks_continue_the_same_log():
    together(2, "continued")


def test_sharded_weights_are_those_of_replicas():
    together(2, "sharded")


def test_a_model_cut_by_columns_and_rows_draws_the_same_noise():
    together(2, "tensor_parallel")


def test_groups_of_different_sizes_are_refused():
    together(3, "uneven")


@pytest.mark.parametrize("at", [0, 2])
def test_a_rank_whose_weights_differ_is_named(at):
    together(3, "corrupted", at)
