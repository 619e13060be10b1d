"""One of four ranks killed with SIGKILL twenty times at random, under torchrun, against the same run left alone.

Run: python -m bench.rank_kills [--kills 20] [--ranks 4] [--steps 1500] [--seed 0]
torchrun starts all ranks again when one is gone; they replay the log up to its last step and go on. Exit code 1 where
weights, log or predictions differ from those of the run that nothing happened to.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from bench.common import report
from bench.kills import JOB
from bench.processes import children
from justforward.optim.log import FILE_NAME, read

RECORD = 4


def command(ranks: int, steps: int, folder: Path, restarts: int) -> list[str]:
    """The job on so many ranks, which share batches of 8."""
    words = [
        w if before != "--per_device_train_batch_size" else str(8 // ranks)
        for before, w in itertools.pairwise(["", *JOB])
    ]
    out = ["--output_dir", str(folder), "--result_file", str(folder / "r.json"), "--max_steps", str(steps)]
    launcher = ["--standalone", "--nproc_per_node", str(ranks), "--max_restarts", str(restarts)]
    more = ["--save_strategy", "no", "--logging_steps", "500"]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "justforward", *words, *out, *more]


def start(words: Sequence[str], log: Path) -> subprocess.Popen:
    """The job in the background, its output in a file."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, env=environment)


def disturb(job: subprocess.Popen, log: Path, kills: int, steps: int, chance: random.Random) -> list[int]:
    """Kill a random rank so many times, each time after a random number of further steps; the steps it was at."""
    at: list[int] = []
    size = lambda: log.stat().st_size if log.exists() else 0  # noqa: E731
    first = 0
    for i in range(kills):
        before = size()
        first = first or before
        more = chance.randint(1, max(2, steps // kills // 2))
        while job.poll() is None and (not size() or size() < before + RECORD * more):
            time.sleep(0.005)
        ranks = children(job.pid)
        if job.poll() is not None or not ranks:
            raise SystemExit(f"the job ended (code {job.poll()}) after {i} kills: give more --steps")
        os.kill(chance.choice(ranks), signal.SIGKILL)
        at.append(size())
        time.sleep(0.3)
    return at


def main(arguments: Sequence[str] = ()) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.rank_kills")
    for name, default in (("kills", 20), ("ranks", 4), ("steps", 1500), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        alone, killed = Path(temporary, "alone"), Path(temporary, "killed")
        began = time.perf_counter()
        job = start(command(given.ranks, given.steps, alone, 0), Path(temporary, "alone.txt"))
        assert job.wait() == 0, Path(temporary, "alone.txt").read_text()[-3000:]
        undisturbed = time.perf_counter() - began
        job = start(command(given.ranks, given.steps, killed, given.kills + 2), Path(temporary, "killed.txt"))
        disturb(job, killed / FILE_NAME, given.kills, given.steps, random.Random(given.seed))
        assert job.wait() == 0, Path(temporary, "killed.txt").read_text()[-3000:]
        seconds = time.perf_counter() - began - undisturbed
        a, b = (load_file(folder / "model.safetensors") for folder in (alone, killed))
        equal = {
            "weights": a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a),
            "log": read(alone / FILE_NAME).steps == read(killed / FILE_NAME).steps,
            "predictions": (alone / "r-predictions.jsonl").read_text() == (killed / "r-predictions.jsonl").read_text(),
        }
        output = Path(temporary, "killed.txt").read_text()
    report(
        f"{given.kills} kills of one of {given.ranks} ranks, {given.steps} steps",
        equal=equal,
        resumed=output.count("going on from"),
        seconds={"undisturbed": round(undisturbed, 1), "killed": round(seconds, 1)},
        seed=given.seed,
    )
    return 0 if all(equal.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
