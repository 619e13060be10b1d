"""Several processes (gloo, CPU) train as one does: sharded, replicated, and by MeZO, which exchanges scalars only."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.golden import DATA, MODEL
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).parents[2]
# fmt: off
JOB = ["--data_dir", DATA, "--use_cpu", "--fp16", "False", "--max_steps", "10", "--eval_strategy", "no",
       "--save_strategy", "no", "--load_best_model_at_end", "False", "--save_model", "--disable_tqdm",
       "--output_dir", "out", "--result_file", "r.json"]
ZO = ["--model_name", "model", "--task_name", "SST2", "--trainer", "zo", "--train_as_classification", "--num_train",
      "16", "--num_dev", "8", "--num_eval", "6", "--train_set_seed", "0", "--learning_rate", "1e-4", "--no_auto_device"]
# fmt: on


@pytest.fixture
def folder(tmp_path):
    """A folder with the golden model, without dropout."""
    shutil.copytree(MODEL, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace('dropout": 0.1', 'dropout": 0.0'))
    return tmp_path


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


def largest_difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    assert set(a) == set(b)
    return max((a[n] - b[n]).abs().max().item() for n in a)


def test_fsdp_equals_one_process(folder):
    script = ["bash", str(ROOT / "finetune_fsdp.sh"), *JOB, "--optim", "sgd"]
    one = launch(folder, "one", script, NUM_GPU="1", BS="4", LR="1e-2")
    two = launch(folder, "two", script, NUM_GPU="2", BS="2", LR="1e-2")
    start = dict(AutoModelForCausalLM.from_pretrained(folder / "model").state_dict())
    assert largest_difference(one, start) > 1e-3
    assert largest_difference(one, two) < 1e-5


def test_replicas_equal_one_process(folder):
    regular = [w if w != "zo" else "regular" for w in ZO]
    job = [str(ROOT / "run.py"), *regular, *JOB, "--optim", "sgd", "--learning_rate", "1e-2"]
    one = launch(folder, "one", [sys.executable, *job, "--per_device_train_batch_size", "4"])
    two = launch(folder, "two", [*processes(2), *job, "--per_device_train_batch_size", "2"])
    assert largest_difference(one, two) < 1e-5


def test_mezo_equals_one_process(folder):
    job = [str(ROOT / "run.py"), *ZO, *JOB]
    one = launch(folder, "one", [sys.executable, *job, "--per_device_train_batch_size", "4"])
    two = launch(folder, "two", [*processes(2), *job, "--per_device_train_batch_size", "2"])
    assert largest_difference(one, two) < 1e-5


def test_directions_are_spread_over_groups(folder):
    job = [str(ROOT / "run.py"), *ZO, *JOB, "--zo_samples", "2", "--per_device_train_batch_size", "4"]
    one = launch(folder, "one", [sys.executable, *job])
    two = launch(folder, "two", [*processes(2), *job, "--zo_direction_groups", "2", "--zo_check_steps", "3"])
    assert largest_difference(one, two) < 1e-5
    start = dict(AutoModelForCausalLM.from_pretrained(folder / "model").state_dict())
    assert largest_difference(one, start) > 1e-4


def test_groups_of_different_sizes_are_refused(folder):
    job = [str(ROOT / "run.py"), *ZO, *JOB, "--zo_samples", "2", "--zo_direction_groups", "2"]
    ran = subprocess.run([*processes(3), *job], cwd=folder, capture_output=True, text=True, timeout=150)
    assert ran.returncode != 0
    assert "3 ranks cannot form 2 equal groups (--zo_direction_groups)" in ran.stderr


def test_sharded_mezo_equals_replicas(folder):
    job = [str(ROOT / "run.py"), *ZO, *JOB, "--per_device_train_batch_size", "2"]
    replicas = launch(folder, "replicas", [sys.executable, *[w if w != "2" else "4" for w in job]])
    shards = launch(folder, "shards", [*processes(2), *job, "--fsdp"])
    assert largest_difference(replicas, shards) < 1e-5
    assert (folder / "shards/out/trajectory.log").stat().st_size > 40


def started(folder: Path, name: str, command: list[str]) -> tuple[subprocess.Popen, Path]:
    """A command in the background in a folder of its own; its log of steps."""
    (folder / name).mkdir(exist_ok=True)
    if not (folder / name / "model").exists():
        (folder / name / "model").symlink_to(folder / "model")
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / name / "output.txt").open("a") as output:
        job = subprocess.Popen(command, cwd=folder / name, env=settings, stdout=output, stderr=output)
    return job, folder / name / "out/trajectory.log"


def after_steps(job: subprocess.Popen, log: Path, steps: int) -> list[int]:
    """Wait until so many more steps are logged; the process numbers of the ranks."""
    begin = time.monotonic()
    size = 0
    while job.poll() is None and time.monotonic() - begin < 200:
        now = log.stat().st_size if log.exists() else 0
        size = size or now
        if size and now >= size + 4 * steps:
            listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True)
            return [int(word) for word in listed.stdout.split()]
        time.sleep(0.01)
    raise AssertionError((log.parents[1] / "output.txt").read_text()[-3000:])


LONG = [*ZO, *JOB, "--per_device_train_batch_size", "2", "--max_steps", "150"]


@pytest.mark.parametrize("sharded", [[], ["--fsdp"]])
def test_a_killed_rank_is_started_again_and_the_run_is_the_same(folder, sharded):
    job = [str(ROOT / "run.py"), *LONG, *sharded]
    whole = launch(folder, "whole", [*processes(2), *job])
    running, log = started(folder, "killed", [*processes(2), "--max_restarts", "2", *job])
    os.kill(after_steps(running, log, 20)[1], signal.SIGKILL)
    assert running.wait(timeout=120) == 0, (folder / "killed/output.txt").read_text()[-3000:]
    assert "going on from out/trajectory.log" in (folder / "killed/output.txt").read_text()
    killed = dict(AutoModelForCausalLM.from_pretrained(folder / "killed/out").state_dict())
    assert largest_difference(whole, killed) == 0
    assert (folder / "whole/out/trajectory.log").read_bytes() == log.read_bytes()


def test_a_rank_that_does_not_answer_is_a_clear_error_and_the_run_goes_on_later(folder):
    job = [str(ROOT / "run.py"), *LONG, "--ddp_timeout", "6"]
    running, log = started(folder, "slow", [*processes(2), *job])
    stopped = after_steps(running, log, 10)[1]
    os.kill(stopped, signal.SIGSTOP)
    try:
        assert running.wait(timeout=120) != 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)
    said = (folder / "slow/output.txt").read_text()
    assert "another rank is gone, cut off or slower than --ddp_timeout" in said
    assert "give the same command again" in said
    whole = launch(folder, "whole", [*processes(2), *job])
    running, log = started(folder, "slow", [*processes(2), *job])
    assert running.wait(timeout=120) == 0
    resumed = dict(AutoModelForCausalLM.from_pretrained(folder / "slow/out").state_dict())
    assert largest_difference(whole, resumed) == 0


def test_a_late_joiner_catches_up(folder, monkeypatch):
    """A second machine, with a folder of its own, joins a run of one: both replay the log and share the other steps."""
    # torchrun would otherwise tell late joiners to look for its store where it is not.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    split = ["--accelerator_config", '{"split_batches": true}', "--per_device_train_batch_size", "4"]
    job = [str(ROOT / "run.py"), *LONG, *split, "--max_steps", "300", "--save_on_each_node"]
    whole = launch(folder, "whole", [sys.executable, *job])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    # fmt: off
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc_per_node", "1", "--max_restarts",
            "3", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "--rdzv_id", "late",
            "--rdzv_conf", "last_call_timeout=1,join_timeout=120"]
    # fmt: on
    first, log = started(folder, "first", [*node, *job])
    after_steps(first, log, 15)
    second, other = started(folder, "second", [*node, *job])
    assert [first.wait(timeout=150), second.wait(timeout=300)] == [0, 0], (folder / "first/output.txt").read_text()
    # transformers saves on the machine of rank 0, whichever that is now.
    saved = next(n for n in ("first", "second") if (folder / n / "out/model.safetensors").exists())
    joined = dict(AutoModelForCausalLM.from_pretrained(folder / saved / "out").state_dict())
    assert largest_difference(whole, joined) < 1e-4
    assert log.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(("where", "precision"), [("cpu", []), ("disk", ["--load_bfloat16"])])
def test_offloaded_equals_resident(folder, where, precision):
    job = [sys.executable, str(ROOT / "run.py"), *ZO, *JOB, *precision, "--zo_probe", "just_in_time"]
    resident = launch(folder, "resident", job)
    offloaded = launch(folder, "offloaded", [*job, "--zo_offload", where])
    assert largest_difference(resident, offloaded) == 0
    assert not list((folder / "offloaded/out").glob(".weights*"))


def predictions(folder: Path, name: str, command: list[str]) -> list[dict]:
    """Evaluate only; what was predicted."""
    (folder / name).mkdir()
    (folder / name / "model").symlink_to(folder / "model")
    ran = subprocess.run(command, cwd=folder / name, capture_output=True, text=True, timeout=150)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return [json.loads(line) for line in (folder / name / "r-predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["SST2", "SQuAD"])
def test_evaluation_is_shared(folder, task):
    words = ["--model_name", "model", "--task_name", task, "--num_train", "2", "--num_eval", "5", "--use_cpu"]
    job = [str(ROOT / "run.py"), *words, "--data_dir", DATA, "--disable_tqdm", "--result_file", "r.json"]
    job += ["--output_dir", "out", "--max_new_tokens", "8"]
    one = predictions(folder, "one", [sys.executable, *job])
    two = predictions(folder, "two", [*processes(2), *job])
    assert len(one) == len(two) == 5
    for a, b in zip(one, two, strict=True):
        assert {k: v for k, v in a.items() if k != "scores"} == {k: v for k, v in b.items() if k != "scores"}
        assert a.get("scores") == pytest.approx(b.get("scores"), abs=1e-5)
