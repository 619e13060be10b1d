"""One rank under torchrun (NCCL on a GPU, gloo in a rehearsal): FSDP2, and a restart after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import report
from bench.gpu.run import on, weights
from bench.gpu.where import Where
from bench.kills import Job
from bench.processes import children, kill_all
from bench.rank_kills import command, start

STEPS = 100
SHARDED = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "-m"]


def measure(where: Where) -> None:
    """All at once: what the jobs take is mostly the import of their libraries."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = Path(temporary), time.perf_counter()
        alone, killed = (
            start([*on(where, command(1, STEPS, folder / name, restarts)), "--no_auto_device"], folder / f"{name}.txt")
            for name, restarts in (("alone", 0), ("killed", 1))
        )
        sharded = subprocess.Popen([*SHARDED, "bench.gpu.sharded", where.device])
        try:
            kill(killed, Job(folder / "killed", []))
            codes = {"alone": alone.wait(), "killed": killed.wait()}
            restarted(where, folder, codes, time.perf_counter() - began)
            assert sharded.wait() == 0, "bench.gpu.sharded failed: see above"
        finally:
            for job in (alone, killed, sharded):
                kill_all(job.pid)


def kill(launcher: subprocess.Popen, job: Job) -> None:
    """SIGKILL for the rank, in the middle of its steps."""
    while launcher.poll() is None and job.steps() < STEPS // 3:
        time.sleep(0.002)
    for rank in children(launcher.pid):
        os.kill(rank, signal.SIGKILL)


def restarted(where: Where, folder: Path, codes: dict[str, int], seconds: float) -> None:
    """The killed job has gone on, and is the one that was left alone."""
    said = {name: (folder / f"{name}.txt").read_text() for name in codes}
    for name, code in codes.items():
        assert code == 0, f"{name}: {said[name][-3000:]}"
    assert "going on from" in said["killed"], f"not restarted: {said['killed'][-3000:]}"
    jobs = [Job(folder / name, []) for name in codes]
    a, b = (weights(job.folder) for job in jobs)
    equal = {
        "log": jobs[0].log.read_bytes() == jobs[1].log.read_bytes(),
        "weights": a.keys() == b.keys() and all(a[n].equal(b[n]) for n in a),
    }
    figure = f"a rank killed and restarted by torchrun, {STEPS} steps"
    report(figure, equal=equal, goal="equal", seconds=round(seconds, 1), device=where.device)
