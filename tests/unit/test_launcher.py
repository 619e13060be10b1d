"""Which process of how many: what launchers say, and what contradicts itself."""

import os

import pytest

from justforward import launcher
from justforward.launcher import Launch

MEET = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
BATCH = {"ENVIRONMENT": "BATCH", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch()),
        (TORCHRUN, Launch(3, 4, 1, "torchrun")),
        (SRUN, Launch(1, 2, 0, "srun")),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "3"}, Launch(1, 3, 0, "srun")),
        (OPEN_MPI, Launch(1, 2, 1, "mpirun")),
        ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, Launch(1, 2, 1, "mpirun")),
        ({"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "0"}, Launch(1, 2, 0, "mpirun")),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Launch()),
        ({"WORLD_SIZE": "1"}, Launch()),
        (SRUN | TORCHRUN, Launch(3, 4, 1, "torchrun")),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "1"}, Launch()),  # torchrun with one process, in a job of several tasks
        (SRUN | {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, Launch()),  # srun -n 1 in such a job
        (BATCH | OPEN_MPI, Launch(1, 2, 1, "mpirun")),
        (BATCH, Launch()),
        (BATCH | {"SLURM_STEP_ID": "0"}, Launch(0, 8, 0, "srun")),
        ({"SLURM_NTASKS": "8"}, Launch()),  # in a shell of salloc
        ({"ACCELERATE_MIXED_PRECISION": "no"} | TORCHRUN, Launch(3, 4, 1, "torchrun")),
    ],
)
def test_what_the_nearest_launcher_says(environment, expected):
    assert launcher.find(environment | MEET) == expected


@pytest.mark.parametrize(
    ("environment", "line"),
    [
        (TORCHRUN, "torchrun has started 4 processes (WORLD_SIZE), and MASTER_ADDR and MASTER_PORT must say where"),
        (SRUN | {"MASTER_ADDR": "a"}, "srun has started 2 processes (SLURM_NTASKS), and MASTER_PORT must say where"),
        (OPEN_MPI, "for a single process unset OMPI_COMM_WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE says 2 processes and RANK does not say which this is"),
        (TORCHRUN | MEET | {"RANK": "4"}, "RANK is 4 and WORLD_SIZE is 4"),
        (TORCHRUN | MEET | {"RANK": "-1"}, "RANK is -1 and WORLD_SIZE is 4"),
        (TORCHRUN | MEET | {"WORLD_SIZE": "two"}, "the environment's WORLD_SIZE is 'two', no number"),
        (TORCHRUN | MEET | {"MASTER_PORT": "any"}, "the environment's MASTER_PORT is 'any', no number"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no"} | MEET,
            "accelerate launch was asked for several processes",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(environment, line):
    with pytest.raises(ValueError, match=r"torchrun") as raised:
        launcher.find(environment)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_libraries_are_told_in_torchruns_words(monkeypatch):
    monkeypatch.setattr(os, "environ", {**SRUN, **MEET})
    assert launcher.settle() == Launch(1, 2, 0, "srun")
    assert {name: os.environ[name] for name in TORCHRUN} == {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert launcher.find() == Launch(1, 2, 0, "torchrun")


def test_alone_nothing_is_told(monkeypatch):
    monkeypatch.setattr(os, "environ", dict(BATCH))
    assert launcher.settle() == Launch()
    assert os.environ == BATCH
