"""Several processes (gloo, CPU) hold one optimiser's state to one another's: what they check is in support/ranks.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ranks

TESTS = Path(__file__).parents[1]


def together(count: int, *words: str) -> None:
    """Run a check on `count` ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]
    ran = subprocess.run(
        [*command, "-m", "support.ranks", *words],
        env={**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]


@pytest.mark.parametrize(
    ("count", "samples", "groups"), [(2, 1, 1), (4, 1, 1), (4, 4, 1), (4, 4, 4), (4, 4, 2), (2, 3, 2)]
)
def test_the_trajectory_does_not_depend_on_the_number_of_ranks(tmp_path, count, samples, groups):
    ranks.trajectory(str(samples), "1", str(tmp_path / "one.pt"))
    together(count, "trajectory", str(samples), str(groups), str(tmp_path / "many.pt"))
    one, many = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "many"))
    for a, b in zip(one["grads"], many["grads"], strict=True):
        assert a == pytest.approx(b, rel=2e-4, abs=2e-4)
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, many["weights"][name], atol=1e-5)


def test_ranks_continue_the_same_log(tmp_path):
    (tmp_path / "trajectory.log").touch()
    together(2, "continued", str(tmp_path))


def test_sharded_weights_are_those_of_replicas():
    together(2, "sharded")


def test_a_model_cut_by_columns_and_rows_draws_the_same_noise():
    together(2, "tensor_parallel")


@pytest.mark.parametrize("at", ["0", "2"])
def test_a_rank_whose_weights_differ_is_named(at):
    together(3, "corrupted", at)
