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


def launch(folder: Path, name: str, command: list[str], **environment: str) -> dict[str, torch.Tensor]:
    """Run a command in a folder of its own; the weights that it saved."""
    (folder / name).mkdir()
    (folder / name / "model").symlink_to(folder / "model")
    # fmt: off
    settings = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "MODEL": "model", "TASK": "SST2",
                "MODE": "ft", "LR": "1e-3", "TRAIN": "16", "DEV": "8", "EVAL": "6", **environment}
    # fmt: on
    ran = subprocess.run(command, cwd=folder / name, env=settings, capture_output=True, text=True, timeout=150)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stderr.count("accuracy 0.") + ran.stderr.count("accuracy 1.") == 1  # one process reports
    assert 0 <= json.loads((folder / name / "r.json").read_text())["accuracy"] <= 1
    model = AutoModelForCausalLM.from_pretrained(folder / name / "out")
    return dict(model.state_dict())


def processes(count: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count)]


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
    return ["bash", "-c", script, "-", sys.executable]


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max((a[n] - b[n]).abs().max().item() for n in a)
