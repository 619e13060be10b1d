"""One rank under torchrun (NCCL on a GPU, gloo in a rehearsal): FSDP2, and a restart after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from bench.common import report
from bench.gpu.run import on, weights
from bench.gpu.where import Where
from bench.kills import Job
from bench.processes import children, kill_all
from bench.rank_kills import command, start
from justforward.optim.log import FILE_NAME, read

STEPS = 100


def measure(where: Where) -> None:
    """All three jobs at once: what they take is mostly the import of the libraries."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = Path(temporary), time.perf_counter()
        words = {
            "alone": command(1, STEPS, folder / "alone", 0),
            "killed": command(1, STEPS, folder / "killed", 1),
            "fsdp": [*command(1, STEPS, folder / "fsdp", 0), "--fsdp"],
        }
        jobs = {name: start([*on(where, w), "--no_auto_device"], folder / f"{name}.txt") for name, w in words.items()}
        try:
            kill(jobs["killed"], Job(folder / "killed", []))
            for name in ("killed", "alone", "fsdp"):
                ended(where, folder, name, jobs[name].wait(), began)
        finally:
            for job in jobs.values():
                kill_all(job.pid)


def kill(launcher: subprocess.Popen, job: Job) -> None:
    """SIGKILL for the rank, in the middle of its steps."""
    while launcher.poll() is None and job.steps() < STEPS // 3:
        time.sleep(0.002)
    for rank in children(launcher.pid):
        os.kill(rank, signal.SIGKILL)


def ended(where: Where, folder: Path, name: str, code: int, began: float) -> None:
    """The figure of a job; that of the undisturbed one is told with each of the others."""
    said = (folder / f"{name}.txt").read_text()
    assert code == 0, f"{name}: {said[-3000:]}"
    if name == "killed":
        assert "going on from" in said, f"the job did not go on after its kill: {said[-3000:]}"
    elif name == "alone":
        a, b = weights(folder / "alone"), weights(folder / "killed")
        equal = {
            "log": (folder / "alone" / FILE_NAME).read_bytes() == (folder / "killed" / FILE_NAME).read_bytes(),
            "weights": a.keys() == b.keys() and all(a[n].equal(b[n]) for n in a),
        }
        figure = f"a rank killed and restarted by torchrun, {STEPS} steps"
        report(figure, equal=equal, goal="equal", seconds=round(time.perf_counter() - began, 1), device=where.device)
    else:
        a, b = weights(folder / "alone"), weights(folder / "fsdp")
        difference = max((a[n].float() - b[n].float()).abs().max().item() for n in a)
        report(
            f"FSDP2, one rank, against the whole model, {STEPS} steps",
            ratio={"largest difference of a weight": difference},
            goal="<= 1e-05",
            steps=len(read(folder / "fsdp" / FILE_NAME).steps),
            seconds=round(time.perf_counter() - began, 1),
            device=where.device,
        )
