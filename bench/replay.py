"""Seconds per step of a replay against those of the training that it repeats, and what the log takes.

Run: python -m bench.replay [--model FOLDER] [--steps 50] [--batch 16] [--threads 2] [--dtypes float32 bfloat16]
Without --model: an OPT-125m-shaped random model. The job is the real command line in a process of its own, on SST-2
rows; a record is appended to its log at one point of every step, so the log's growth tells the time that a step takes.
Beside the clock's seconds are the processor's. On a machine that is busy elsewhere the clock tells little, and several
threads wait for each other at the processor's cost: take --threads 1 and the processor's seconds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, OPTConfig

from bench.common import report
from justforward.models.loading import LoadedModel
from justforward.optim.log import FILE_NAME, Layout, read
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import get_task
from justforward.trajectory.replay import replay

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
DATA = FIXTURES / "golden" / "data"
LONG_RUN = 20_000
"""Steps of the published runs."""


def opt_125m(folder: Path) -> None:
    """Save a random model of that shape, with a small tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(OPTConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(FIXTURES / "tiny-opt-4k").save_pretrained(folder)


def cpu_seconds(process: int) -> float:
    """What a process has used of the processors so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(model: str, dtype: str, given: argparse.Namespace, output: Path) -> list[tuple[float, float]]:
    """Run the job; the moments at which its steps were logged, by the clock and in processor time."""
    # fmt: off
    command = [
        sys.executable, "-m", "justforward", "--task_name", "SST2", "--data_dir", str(DATA), "--model_name", model,
        "--use_cpu", "--trainer", "zo", "--train_as_classification", "--num_train", "32", "--train_set_seed", "0",
        "--learning_rate", "1e-6", "--max_steps", str(given.steps), "--per_device_train_batch_size", str(given.batch),
        "--lr_scheduler_type", "constant", "--save_strategy", "no", "--save_model", "--no_eval",
        "--output_dir", str(output), *([] if dtype == "float32" else [f"--load_{dtype}"]),
    ]
    # fmt: on
    log, settings = output / FILE_NAME, {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
    moments: list[tuple[float, float]] = []
    with output.with_suffix(".out").open("w+") as printed:
        process = subprocess.Popen(command, env=settings, stdout=printed, stderr=printed)
        while process.poll() is None:
            if log.exists() and len(read(log).steps) > len(moments):
                moments.append((time.perf_counter(), cpu_seconds(process.pid)))
            time.sleep(0.002)
        if process.returncode:
            printed.seek(0)
            raise SystemExit(f"the training failed:\n{printed.read()}")
    return moments


def timed_replay(log: Path, to: int | None) -> tuple[float, float, LoadedModel]:
    """Seconds by the clock and of processor time, and the model."""
    start, used = time.perf_counter(), time.process_time()
    loaded = replay(log, to=to)
    return time.perf_counter() - start, time.process_time() - used, loaded


def is_saved(loaded: LoadedModel, folder: Path) -> bool:
    """Whether the model is, to the bit, the one that the training saved."""
    state = loaded.model.state_dict()
    return all(torch.equal(value, state[name].cpu()) for name, value in load_file(folder / "model.safetensors").items())


def tokens_per_sample(loaded: LoadedModel) -> float:
    """Mean number of tokens that are fed for a sample; its options are one token each, which is not."""
    task = get_task("SST2")
    encoder = PromptEncoder(loaded.tokenizer, task, bos_token_id=loaded.bos_token_id)
    samples = task.load(str(DATA)).train
    return statistics.mean(len(encoder.candidates(sample)[0].tokens) - 1 for sample in samples)


def compare(model: str, name: str, dtype: str, given: argparse.Namespace, folder: Path) -> None:
    """Train, replay, and print the figure."""
    output = folder / dtype
    moments = train(model, dtype, given, output)
    log = read(output / FILE_NAME)
    assert len(moments) == len(log.steps) == given.steps
    training, training_cpu = (
        statistics.median(b - a for a, b in itertools.pairwise(m)) for m in zip(*moments, strict=True)
    )
    timed_replay(output, 1)  # compiles the noise
    *nothing, _ = timed_replay(output, 0)
    *everything, loaded = timed_replay(output, None)
    replaying, replaying_cpu = ((b - a) / given.steps for a, b in zip(nothing, everything, strict=True))
    record = Layout(log.header["samples"], 0).record_size
    report(
        "replay",
        model=name,
        dtype=dtype,
        parameters=loaded.model.num_parameters(),
        steps=given.steps,
        batch=given.batch,
        tokens_per_probe=round(given.batch * tokens_per_sample(loaded)),
        seconds_per_training_step=round(training, 4),
        seconds_per_replayed_step=round(replaying, 4),
        ratio=round(replaying / training, 4),
        cpu_seconds_per_training_step=round(training_cpu, 4),
        cpu_seconds_per_replayed_step=round(replaying_cpu, 4),
        cpu_ratio=round(replaying_cpu / training_cpu, 4),
        seconds_to_load=round(nothing[0], 2),
        equal_to_the_bit=is_saved(loaded, output),
        log_bytes=log.size,
        header_bytes=log.start,
        bytes_per_step=record,
        bytes_of_20000_steps=log.start + LONG_RUN * record,
        hours_of_20000_steps={
            "training": round(LONG_RUN * training / 3600, 2),
            "replay": round(LONG_RUN * replaying / 3600, 2),
        },
    )


def main(words: Sequence[str] = ()) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", help="folder of a model; default: a random one of OPT-125m's shape")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the training and the replay")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = given.model
        if model is None:
            model = str(folder / "model")
            opt_125m(folder / "model")
        for dtype in given.dtypes:
            compare(model, given.model or "OPT-125m shape", dtype, given, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
