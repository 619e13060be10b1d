"""Which process of how many this is, as whatever started it says: torchrun, accelerate launch, srun or mpirun.

The one place that reads their variables. The libraries below read those of torchrun alone, so what the others say is
put into these.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

_WAYS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("mpirun", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("mpirun", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("srun", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
"""Launchers with their variables for a process's number, for how many there are, and for its number on its machine.

The nearest one comes first: mpirun and torchrun are started by srun, or in a batch job, and not the other way round.
"""

_TORCHRUN = _WAYS[0][1:]


@dataclass(frozen=True)
class Launch:
    """A process among those of one command; by: what started them, "" for one that is alone.

    rank: its number; size: how many there are; local_rank: its number on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    by: str = ""


def find(environment: Mapping[str, str] | None = None) -> Launch:
    """Which process this is, told from the environment (None: its own).

    Raises ValueError, in one line, for variables that contradict each other, and where several processes do not know
    where to meet.
    """
    environment = os.environ if environment is None else environment
    for by, *names in _WAYS:
        if all(name in environment for name in names[:2]) and not _is_batch_script(by, environment):
            return _read(by, names, environment)
    if _number("WORLD_SIZE", environment.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"WORLD_SIZE says {environment['WORLD_SIZE']} processes and RANK does not say which this is: start them "
            "with torchrun, or unset WORLD_SIZE"
        )
    if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        raise ValueError(
            "accelerate launch was asked for several processes and has started one, as it does without GPUs: give it "
            "--multi_gpu (two processes then share the CPUs all the same), or start with torchrun"
        )
    return Launch()


def settle() -> Launch:
    """Find this process's launch, and tell the libraries of it in the variables that they read: those of torchrun."""
    launch = find()
    if launch.size > 1:
        told = (launch.rank, launch.size, launch.local_rank)
        os.environ.update({name: str(value) for name, value in zip(_TORCHRUN, told, strict=True)})
    return launch


def name() -> str:
    """What torchrun calls all starts of one command: "none" where it was given no name, "" where it started nothing."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def restarts() -> int:
    """How often torchrun has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def keeps_store() -> bool:
    """Whether torchrun itself keeps the store at which the processes meet; else the first of them does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def _is_batch_script(by: str, environment: Mapping[str, str]) -> bool:
    """Whether this is a batch script's only process, in which Slurm shows the tasks that srun might start."""
    return by == "srun" and environment.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_ID" not in environment


def _read(by: str, names: list[str], environment: Mapping[str, str]) -> Launch:
    rank, size = (_number(name, environment[name]) for name in names[:2])
    if not 0 <= rank < max(size, 1):
        raise ValueError(f"{names[0]} is {rank} and {names[1]} is {size}: ranks count from 0; start with torchrun")
    if size <= 1:
        return Launch()
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if missing:
        raise ValueError(
            f"{by} has started {size} processes ({names[1]}), and {' and '.join(missing)} must say where they meet: "
            "give the machine of the first and a free port there, or start with torchrun; for a single process unset "
            f"{names[1]}"
        )
    _number("MASTER_PORT", environment["MASTER_PORT"])
    # Without it all are taken to be on one machine; where they are not, there is no such device.
    return Launch(rank, size, _number(names[2], environment.get(names[2], str(rank))), by)


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"the environment's {name} is '{text}', no number: start with torchrun, or unset it") from None
