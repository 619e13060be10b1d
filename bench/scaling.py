"""Training on several ranks: weak scaling, bytes on the wire, a slow link between two hosts, and the model of it all.

Run: python -m bench.scaling [weak] [bytes] [link] [model]     (all of them where none is named)
"bytes" and "link" make network namespaces: Linux, root. A rank is one process on one thread with a batch of its own,
so `weak` shows what ranks cost one another on the cores at hand: two ranks on two cores ought to take as long as one.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import report
from bench.link import ADDRESSES, DEVICE, two_hosts

DELAY, LOSS = 0.05, 0.01
PORT = "29655"

NEEDS_ROOT = True


def rank_main(shape: str, examples: str, steps: str, samples: str, groups: str) -> None:
    """What a rank runs: seconds of each step, on rank 0's standard output."""
    import torch
    import torch.distributed as dist

    from bench.workload import step_of

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    made = step_of(shape, examples=int(examples))
    made.mezo.samples, made.mezo.direction_groups = int(samples), int(groups)
    made.mezo._clear()
    times = []
    for _ in range(int(steps)):
        start = time.perf_counter()
        made.run()
        times.append(time.perf_counter() - start)
    if dist.get_rank() == 0:
        print(json.dumps(times))
    dist.barrier()
    dist.destroy_process_group()


def launch(
    ranks: int, shape: str, steps: int, *, prefix: Sequence[str] = (), samples: int = 1, groups: int = 1
) -> list[float]:
    """Run a job of so many local ranks; seconds per step."""
    words = [shape, "8", str(steps), str(samples), str(groups)]
    ran = subprocess.run(
        [*prefix, *torchrun("--standalone", "--nproc_per_node", str(ranks)), "rank", *words],
        env=_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return _times(ran.stdout)


def torchrun(*words: str) -> list[str]:
    """The launcher's command line up to this module."""
    return [sys.executable, "-m", "torch.distributed.run", *words, "-m", "bench.scaling"]


def weak() -> dict[int, float]:
    """Seconds per step of 1, 2 and 4 ranks, each with 8 examples of its own, against the cores' ideal."""
    cores = os.cpu_count() or 1
    found: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(3):
        for ranks, times in found.items():
            times.extend(launch(ranks, "25m", 8)[2:])
    medians = {ranks: statistics.median(times) for ranks, times in found.items()}
    # More ranks than cores share them: the ideal is then that many times as long.
    efficiency = {n: round(medians[1] * max(1, n / cores) / s, 3) for n, s in medians.items()}
    report(
        "weak scaling: OPT-25m, 8 examples a rank, a thread a rank",
        seconds_per_step={n: round(s, 4) for n, s in medians.items()},
        efficiency=efficiency,
        cores=cores,
    )
    return medians


def wire_bytes() -> None:
    """Bytes that cross the loopback device per step and rank: from the difference of a long and a short run."""
    for ranks, samples, groups in ((2, 1, 1), (4, 1, 1), (4, 4, 4), (4, 16, 4)):
        counted = {}
        for steps in (20, 220):
            # Without torchrun, whose heartbeats would be counted too; then bytes and packets received, and sent.
            script = f'ip link set lo up; for r in $(seq 0 {ranks - 1}); do RANK=$r "$@" & done; '
            script += "wait; grep lo: /proc/net/dev"
            words = ["rank", "tiny", "1", str(steps), str(samples), str(groups)]
            here = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": PORT}
            ran = subprocess.run(
                ["unshare", "-n", "bash", "-c", script, "-", sys.executable, "-m", "bench.scaling", *words],
                env={**_environment(), **here}, capture_output=True, text=True, check=True,
            )  # fmt: skip
            fields = re.findall(r"lo:\s*(\d+)\s+(\d+)", ran.stdout)[-1]
            counted[steps] = int(fields[0]), int(fields[1])
        (b0, p0), (b1, p1) = counted[20], counted[220]
        per = 200 * ranks
        payload = 4 * (2 * samples + 1)
        report(
            f"bytes per step and rank: {ranks} ranks, {samples} directions, {groups} groups",
            payload=payload,
            allowed=64 + 16 * samples,
            wire=round((b1 - b0) / per, 1),
            packets=round((p1 - p0) / per, 2),
        )


def over_link() -> dict[str, float]:
    """Two hosts, 50 ms and 1 % loss apart, against the same two ranks side by side."""
    local = statistics.median(launch(2, "25m", 12)[2:])
    words = ["25m", "8", "40", "1", "1"]
    meeting = ["--master_addr", ADDRESSES[0], "--master_port", PORT]
    with two_hosts(DELAY, LOSS) as (hosts, link):
        running = [
            subprocess.Popen(
                [
                    *host,
                    *torchrun("--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(i), *meeting),
                    *["rank", *words],
                ],
                env={**_environment(), "GLOO_SOCKET_IFNAME": DEVICE},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for i, host in enumerate(hosts)
        ]  # fmt: skip
        outputs = [process.communicate(timeout=600) for process in running]
        assert all(process.returncode == 0 for process in running), outputs
        times = _times(outputs[0][0])[2:]
        carried = {"bytes": sum(link.bytes), "packets": sum(link.packets)}
    mean, median = statistics.mean(times), statistics.median(times)
    report(
        f"two hosts {DELAY * 1e3:.0f} ms and {LOSS:.0%} loss apart: OPT-25m, 8 examples a rank",
        seconds_per_step={"local": round(local, 4), "median": round(median, 4), "mean": round(mean, 4)},
        ratio={"local/apart": round(local / median, 3)},
        slowest=round(max(times), 3),
        carried=carried,
    )
    return {"local": local, "apart": mean}


def predicted(compute: float, ranks: int, latency: float, *, spread: float = 0.0, loss: float = 0.0) -> float:
    """Seconds per step by the cost model of docs/scaling.md: compute, the wait for the slowest rank, and hops."""
    wait = compute * spread * math.sqrt(2 * math.log(ranks)) if ranks > 1 else 0.0
    hops = 2 * math.ceil(math.log2(ranks)) if ranks > 1 else 0
    return compute + wait + hops * (latency + loss * max(0.2, 2 * latency))


def simulated(
    compute: float, ranks: int, latency: float, *, spread: float = 0.0, loss: float = 0.0, steps: int = 400
) -> float:
    """The same by simulation: every rank's time is drawn; an all-reduce goes up and down a tree of messages.

    A lost message is sent again after TCP's retransmission time-out, at least 0.2 s.
    """
    chance = random.Random(1)

    def message() -> float:
        late, wait = latency, max(0.2, 2 * latency)
        while chance.random() < loss:
            late, wait = late + wait, 2 * wait
        return late

    total = 0.0
    for _ in range(steps):
        ready = [max(0.0, chance.gauss(compute, spread * compute)) for _ in range(ranks)]
        width = 1
        while width < ranks:  # up the tree, then down again
            for i in range(0, ranks - width, 2 * width):
                ready[i] = max(ready[i], ready[i + width] + message())
            width *= 2
        while width >= 1:
            for i in range(0, ranks - width, 2 * width):
                ready[i + width] = ready[i] + message()
            width //= 2
        total += max(ready)
    return total / steps


def model_table() -> None:
    """Model and simulation, 1 to 10,000 ranks: a step of 0.2 s that varies by 5 %, in one rack and across regions."""
    for name, latency, loss in (("one rack, 50 us", 5e-5, 0.0), ("regions, 50 ms, 1 % loss", DELAY, LOSS)):
        sizes = (1, 2, 4, 16, 100, 1000, 10_000)
        settings = {"spread": 0.05, "loss": loss}
        report(
            f"cost model: {name}, 0.2 s of compute with 5 % spread",
            model={n: round(predicted(0.2, n, latency, **settings), 4) for n in sizes},
            simulation={n: round(simulated(0.2, n, latency, steps=max(20, 4000 // n), **settings), 4) for n in sizes},
        )


def against_measured(apart: dict[str, float]) -> None:
    """The model's and the simulation's prediction of the two hosts, from the local step."""
    settings: dict[str, Any] = {"spread": 0.05, "loss": LOSS}
    report(
        "cost model against two hosts apart",
        measured=round(apart["apart"], 4),
        model=round(predicted(apart["local"], 2, DELAY, **settings), 4),
        simulation=round(simulated(apart["local"], 2, DELAY, **settings), 4),
    )


def _environment() -> dict[str, str]:
    root = Path(__file__).parents[1]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def _times(output: str) -> list[float]:
    return json.loads(next(line for line in output.splitlines() if line.startswith("[")))


def main(words: Sequence[str] = ()) -> None:
    """See the module."""
    if words and words[0] == "rank":
        rank_main(*words[1:])
        return
    chosen = set(words) or {"weak", "bytes", "link", "model"}
    if "weak" in chosen:
        weak()
    if "bytes" in chosen:
        wire_bytes()
    if "link" in chosen:
        against_measured(over_link())
    if "model" in chosen:
        model_table()


if __name__ == "__main__":
    main(sys.argv[1:])
