"""Ranks that die, hang or come late: the run goes on from its log, and ends with the same weights."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.launching import JOB, ROOT, ZO, folder, free_port, largest_difference, launch, prepare, processes
from transformers import AutoModelForCausalLM

__all__ = ["folder"]


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and the weights of a run of two ranks that nothing happens to."""
    folder = prepare(tmp_path_factory.mktemp("undisturbed"))
    return folder / "whole", launch(folder, "whole", [*processes(2), str(ROOT / "run.py"), *LONG])


LONG = [*ZO, *JOB, "--per_device_train_batch_size", "2", "--max_steps", "150"]


@pytest.mark.parametrize("sharded", [[], ["--fsdp"]])
def test_a_killed_rank_is_started_again_and_the_run_is_the_same(folder, undisturbed, sharded):
    job = [str(ROOT / "run.py"), *LONG, *sharded]
    place, whole = undisturbed
    if sharded:  # one sign at a time, which rounds otherwise
        place, whole = folder / "whole", launch(folder, "whole", [*processes(2), *job])
    running, log = started(folder, "killed", [*processes(2), "--max_restarts", "2", *job])
    os.kill(after_steps(running, log, 20)[1], signal.SIGKILL)
    assert running.wait(timeout=120) == 0, (folder / "killed/output.txt").read_text()[-3000:]
    assert "going on from out/trajectory.log" in (folder / "killed/output.txt").read_text()
    killed = dict(AutoModelForCausalLM.from_pretrained(folder / "killed/out").state_dict())
    assert largest_difference(whole, killed) == 0
    assert (place / "out/trajectory.log").read_bytes() == log.read_bytes()


def test_a_rank_that_does_not_answer_is_a_clear_error_and_the_run_goes_on_later(folder, undisturbed):
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
    running, log = started(folder, "slow", [*processes(2), *job])
    assert running.wait(timeout=120) == 0
    resumed = dict(AutoModelForCausalLM.from_pretrained(folder / "slow/out").state_dict())
    assert largest_difference(undisturbed[1], resumed) == 0


def test_a_late_joiner_catches_up(folder, monkeypatch):
    """A second machine, with a folder of its own, joins a run of one: both replay the log and share the other steps."""
    # torchrun would otherwise tell late joiners to look for its store where it is not.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    split = ["--accelerator_config", '{"split_batches": true}', "--per_device_train_batch_size", "4"]
    job = [str(ROOT / "run.py"), *LONG, *split, "--max_steps", "1000", "--save_on_each_node"]
    whole = launch(folder, "whole", [sys.executable, *job])
    # fmt: off
    node = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc_per_node", "1", "--max_restarts",
            "3", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}", "--rdzv_id", "late",
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
