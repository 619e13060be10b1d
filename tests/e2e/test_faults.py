"""Ranks that die, hang or come late: the run goes on from its log, and ends with the same weights."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.forking import RUN, TORCHRUN, Forked
from support.launching import (
    JOB,
    ZO,
    alone,
    begin,
    folder,
    free_port,
    largest_difference,
    launch,
    prepare,
    processes,
    saved,
)

__all__ = ["folder"]


@pytest.fixture
def started(folder):
    """Begins commands that end with the test at the latest; gives each with its log of steps."""
    running = []

    def start(name: str, command: list[str]) -> tuple[subprocess.Popen | Forked, Path]:
        running.append(begin(folder, name, command))
        return running[-1], folder / name / "out/trajectory.log"

    yield start
    for job in running:
        job.terminate()
    for job in running:
        job.wait(timeout=60)


def wait_until(true: Callable[[], bool]) -> None:
    begin = time.monotonic()
    while not true():
        assert time.monotonic() - begin < 200
        time.sleep(0.01)


def after_steps(job: subprocess.Popen | Forked, log: Path, steps: int) -> list[int]:
    """Wait until so many more steps are logged; the process numbers of the ranks."""
    size = 0

    def logged() -> bool:
        nonlocal size
        now = log.stat().st_size if log.exists() else 0
        size = size or now
        return bool(size) and now >= size + 4 * steps

    wait_until(lambda: job.poll() is not None or logged())
    assert job.poll() is None, (log.parents[1] / "stderr.txt").read_text()[-3000:]
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder and the weights of a run of two ranks that nothing happens to."""
    folder = prepare(tmp_path_factory.mktemp("undisturbed"))
    return folder / "whole", launch(folder, "whole", [*processes(2), *LONG])


LONG = [*ZO, *JOB, "--per_device_train_batch_size", "2", "--max_steps", "80"]


@pytest.mark.parametrize("sharded", [[], ["--fsdp"]])
def test_a_killed_rank_is_started_again_and_the_run_is_the_same(folder, undisturbed, started, sharded):
    place, whole = undisturbed
    if sharded:  # one sign at a time, which rounds otherwise
        place, whole = folder / "whole", launch(folder, "whole", [*processes(2), *LONG, *sharded])
    running, log = started("killed", [*processes(2, "--max_restarts", "2"), *LONG, *sharded])
    os.kill(after_steps(running, log, 20)[1], signal.SIGKILL)
    said = folder / "killed/stderr.txt"
    assert running.wait(timeout=120) == 0, said.read_text()[-3000:]
    assert "going on from out/trajectory.log" in said.read_text()
    assert largest_difference(whole, saved(folder / "killed/out")) == 0
    assert (place / "out/trajectory.log").read_bytes() == log.read_bytes()


def test_a_rank_that_does_not_answer_is_a_clear_error_and_the_run_goes_on_later(folder, undisturbed, started):
    job = [*processes(2), *LONG, "--ddp_timeout", "6"]
    running, log = started("slow", job)
    stopped = after_steps(running, log, 10)[1]
    os.kill(stopped, signal.SIGSTOP)
    errors = folder / "slow/stderr.txt"
    try:
        wait_until(lambda: running.poll() is not None or "another rank is gone" in errors.read_text())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGKILL)  # as torchrun does, half a minute later
    assert running.wait(timeout=120) != 0
    said = errors.read_text()
    assert "another rank is gone, cut off or slower than --ddp_timeout" in said
    assert "give the same command again" in said
    running, _ = started("slow", job)
    assert running.wait(timeout=120) == 0
    assert largest_difference(undisturbed[1], saved(folder / "slow/out")) == 0


def test_a_late_joiner_catches_up(folder, started, monkeypatch):
    """A second machine, with a folder of its own, joins a run of one: both replay the log and share the other steps."""
    # torchrun would otherwise tell late joiners to look for its store where it is not.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    split = ["--accelerator_config", '{"split_batches": true}', "--per_device_train_batch_size", "4"]
    job = [*LONG, *split, "--max_steps", "400", "--save_on_each_node"]
    whole = launch(folder, "whole", [*alone(), *job])
    # fmt: off
    node = [sys.executable, *TORCHRUN, "--nnodes", "1:2", "--nproc_per_node", "1", "--max_restarts",
            "3", "--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{free_port()}", "--rdzv_id", "late",
            "--rdzv_conf", "last_call_timeout=1,join_timeout=120", RUN]
    # fmt: on
    first, log = started("first", [*node, *job])
    after_steps(first, log, 15)
    second, other = started("second", [*node, *job])
    assert [first.wait(timeout=150), second.wait(timeout=300)] == [0, 0], (folder / "first/stderr.txt").read_text()
    assert "going on from out/trajectory.log" in (folder / "first/stderr.txt").read_text()  # the second came in time
    # transformers saves on the machine of rank 0, whichever that is now.
    main = next(n for n in ("first", "second") if (folder / n / "out/model.safetensors").exists())
    assert largest_difference(whole, saved(folder / main / "out")) < 1e-4
    assert log.read_bytes() == other.read_bytes()
