"""Jobs of several processes, started as users start them: a model without dropout, each job in a folder of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from support.forking import RUN, TORCHRUN, Forked
from support.golden import DATA, MODEL

ROOT = Path(__file__).parents[2]
# fmt: off
JOB = ["--data_dir", DATA, "--use_cpu", "--fp16", "False", "--max_steps", "10", "--eval_strategy", "no",
       "--save_strategy", "no", "--load_best_model_at_end", "False", "--save_model", "--disable_tqdm",
       "--output_dir", "out", "--result_file", "r.json"]
ZO = ["--model_name", "model", "--task_name", "SST2", "--trainer", "zo", "--train_as_classification", "--num_train",
      "16", "--num_dev", "8", "--num_eval", "6", "--train_set_seed", "0", "--learning_rate", "1e-4", "--no_auto_device"]
# fmt: on


def prepare(folder: Path) -> Path:
    """Put the golden model into a folder, without dropout."""
    shutil.copytree(MODEL, folder / "model")
    config = folder / "model" / "config.json"
    config.write_text(config.read_text().replace('dropout": 0.1', 'dropout": 0.0'))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A folder of a test's own with that model."""
    return prepare(tmp_path)


def begin(folder: Path, name: str, command: list[str], **environment: str) -> subprocess.Popen | Forked:
    """Begin a command in a folder of its own, where its output goes; Python's are forked, others start as they do."""
    place = folder / name
    if not place.exists():
        place.mkdir()
        (place / "model").symlink_to(folder / "model")
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    out, errors = place / "stdout.txt", place / "stderr.txt"
    if command[0] == sys.executable:
        return Forked(command, place, settings, out, errors)
    with out.open("a") as stdout, errors.open("a") as stderr:
        return subprocess.Popen(command, cwd=place, env=settings, stdout=stdout, stderr=stderr)


def finish(folder: Path, name: str, command: list[str], **environment: str) -> str:
    """Run a command to its end, which must be a good one; what it wrote to stderr."""
    running = begin(folder, name, command, **environment)
    try:
        status = running.wait(timeout=150)
    finally:
        running.terminate()
    said = (folder / name / "stderr.txt").read_text()
    assert status == 0, said[-3000:]
    return said


def launch(folder: Path, name: str, command: list[str], **environment: str) -> dict[str, torch.Tensor]:
    """Run a job in a folder of its own; the weights that it saved."""
    said = finish(folder, name, command, **environment)
    assert said.count("accuracy 0.") + said.count("accuracy 1.") == 1  # one process reports
    assert 0 <= json.loads((folder / name / "r.json").read_text())["accuracy"] <= 1
    return saved(folder / name / "out")


def saved(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def alone() -> list[str]:
    return [sys.executable, RUN]


def processes(count: int, *options: str) -> list[str]:
    return [sys.executable, *TORCHRUN, "--standalone", "--nproc_per_node", str(count), *options, RUN]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return str(free.getsockname()[1])


def as_srun_does(count: int) -> list[str]:
    """Processes that know from Slurm's variables alone which they are."""
    given = f"SLURM_NTASKS={count} SLURM_STEP_ID=0 MASTER_ADDR=localhost MASTER_PORT={free_port()}"
    start = f'{given} SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & started+=($!)'
    script = (
        f"for i in $(seq 0 {count - 1}); do {start}; done; for one in ${{started[@]}}; do wait $one || exit 1; done"
    )
    return ["bash", "-c", script, "-", *alone()]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max((a[n] - b[n]).abs().max().item() for n in a)
