"""A MeZO run by the command line: the CPU's losses, the same log twice, killed and resumed, replayed, in 16 bits."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from bench.common import report
from bench.gpu.where import Where
from bench.kills import FIXTURES, JOB, Job, equal
from bench.replay import is_saved
from justforward.noise import ROUNDINGS
from justforward.trajectory.replay import replay

SMOLLM2: dict[str, Any] = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
"""The shape of SmolLM2-135M."""
SMALL = SMOLLM2 | {"hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 8192}

STEPS = 30
LOSS, GRADIENT = 1e-4, 0.02
"""How far losses may lie from the CPU's, and projected gradients, over the largest of them: differences of two losses
that are rounded in their 24th bit, over 2 eps."""


def on(where: Where, words: Sequence[str]) -> list[str]:
    """The words of a job for the device."""
    return [word for word in words if where.rehearsal or word != "--use_cpu"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a job saved."""
    return load_file(folder / "model.safetensors")


def save(where: Where, folder: Path) -> None:
    """A model of random weights, with a small tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(**where.pick(SMOLLM2, SMALL))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(FIXTURES / "tiny-opt-4k").save_pretrained(folder)


def jobs(where: Where, folder: Path) -> dict[str, Job]:
    """By name; "killed" is killed once."""
    # fmt: off
    words = [*JOB, "--model_name", str(folder / "model"), "--learning_rate", "1e-6", "--max_steps", str(STEPS),
             "--save_strategy", "no", "--logging_steps", "1"]
    # fmt: on
    half = {r: [*on(where, words), "--load_bfloat16", "--zo_rounding", r] for r in ROUNDINGS}
    same = {name: on(where, words) for name in ("whole", "again", "killed")}
    return {name: Job(folder / name, said) for name, said in (same | {"cpu": words} | half).items()}


def command(job: Job) -> list[str]:
    """A job's command."""
    where = ["--output_dir", str(job.folder), "--result_file", str(job.folder.with_suffix(".json"))]
    return [sys.executable, "-m", "justforward", *job.arguments, *where]


def environment() -> dict[str, str]:
    """Of a job among eight: a share of the cores."""
    return {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 8))}


def carried_out(words: Sequence[str], output: Path) -> float:
    """Run a command to its good end; its seconds."""
    began = time.perf_counter()
    with output.open("w") as file:
        run = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, check=False, env=environment())
    assert run.returncode == 0, f"{' '.join(words)}:\n{output.read_text()[-3000:]}"
    return time.perf_counter() - began


def killed(job: Job) -> int:
    """Run a job, kill it halfway; how many steps its log then has."""
    with job.output.open("w") as file:
        process = subprocess.Popen(command(job), stdout=file, stderr=subprocess.STDOUT, env=environment())
        while process.poll() is None and job.steps() < STEPS // 3:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
    assert code == -signal.SIGKILL, f"ended before it was killed:\n{job.output.read_text()[-3000:]}"
    return job.steps()


def resumed(job: Job) -> int:
    """Run a job, kill it, and give it again."""
    at = killed(job)
    carried_out(command(job), job.output)
    return at


def measure(where: Where) -> None:
    """Everything that can run at the same time does: most of a job is the import of its libraries."""
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as pool:
        folder = Path(temporary)
        save(where, folder / "model")
        known = jobs(where, folder)
        cut = pool.submit(resumed, known.pop("killed"))
        ran = {name: pool.submit(carried_out, command(job), job.output) for name, job in known.items()}
        seconds = {name: round(ran[name].result(), 1) for name in ("whole", "again")}
        same_log(where, known["whole"], known["again"], "given twice", seconds=seconds)
        at = cut.result()
        killed_one = Job(folder / "killed", [])
        same_log(where, known["whole"], killed_one, f"killed after {at} of {STEPS} steps, and given again")
        ran["cpu"].result()
        of_the_cpu(where, known["whole"], known["cpu"])
        for name in ("whole", *ROUNDINGS):
            ran[name].result()
            replayed(where, name, known[name])


def same_log(where: Where, one: Job, other: Job, what: str, **facts: object) -> None:
    """Logs to the byte, weights to the bit, predictions."""
    report(f"run: {what}", equal=equal(one, other), goal="equal", device=where.device, **facts)


def losses(job: Job) -> dict[str, list[float]]:
    """What a job printed of its steps."""
    lines = [line for line in job.output.read_text().splitlines() if line.startswith("{'loss'")]
    entries = [{key: float(value) for key, value in ast.literal_eval(line).items()} for line in lines]
    assert len(entries) == STEPS, f"{len(entries)} of {STEPS} steps are in {job.output.read_text()[-2000:]}"
    return {key: [entry[key] for entry in entries] for key in ("loss", "projected_grad")}


def of_the_cpu(where: Where, one: Job, other: Job) -> None:
    """The same run on the CPU: every loss within rounding."""
    found = [losses(job) for job in (one, other)]
    apart = {k: max(abs(a - b) for a, b in zip(found[0][k], found[1][k], strict=True)) for k in found[0]}
    largest = max(map(abs, found[1]["projected_grad"]))
    ratio = {"loss": apart["loss"] / LOSS, "projected gradient": apart["projected_grad"] / largest / GRADIENT}
    report(
        f"run: differences from the CPU's over {STEPS} steps, over what rounding may make",
        ratio={key: round(value, 4) for key, value in ratio.items()},
        goal="<= 1",
        largest_difference=apart,
        device=where.device,
    )


def replayed(where: Where, name: str, job: Job) -> None:
    """The weights that a run saved, rebuilt from its log, on the CPU and on the device."""
    same = {
        place: is_saved(replay(job.log, device=place), job.folder) for place in dict.fromkeys(["cpu", where.device])
    }
    what = "float32" if name == "whole" else f"bfloat16, {name} rounding"
    report(f"run: replayed, {what}", equal=same, goal="equal", device=where.device)
