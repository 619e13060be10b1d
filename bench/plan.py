"""What `justforward plan` predicts against measured peaks of resident memory, and its times against measured ones.

Run: python -m bench.plan [SHAPE ...]
OPT-25m, OPT-125m and a Llama-like shape of 56 million weights with grouped keys; a step on 16 examples of 62 tokens,
evaluation of full passes. The plan is made by the command from a folder that holds `config.json` alone. Every peak
(VmHWM, set back after the model is built) is taken in a process of its own, which has imported what a job imports;
glibc is told to give memory back at once. `ratio` is predicted over measured, of everything and of what the model adds
to the program alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, OPTConfig, PretrainedConfig

from bench.common import report
from bench.peak import MIB, resident
from bench.workload import OPTIONS, SHAPES, TOKENS, adapted, prompts_of, step_on
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example

BATCH, DEMONSTRATIONS = 16, 12
GOAL = 0.1
LLAMA: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "100000"}

ALWAYS = ("zero-shot", "MeZO, all weights")
ONCE = ("the same, one set", "MeZO, LoRA", "MeZO, prefix", "LoRA, backpropagation", "Adam, all weights")
"""Jobs by the plan's names: of all shapes and dtypes, and of one shape in float32."""

SHAPE_OF_ALL = "125m"


def config_of(shape: str) -> PretrainedConfig:
    """The configuration of a shape."""
    if shape == "llama":
        return LlamaConfig(**LLAMA)
    return OPTConfig(**SHAPES[shape], word_embed_proj_dim=SHAPES[shape]["hidden_size"])


def rows_of(count: int, vocabulary: int, shared: int = 0) -> list[Example]:
    """Examples of two one-token options, behind so many shared tokens."""
    (start,) = prompts_of(1, vocabulary, shared) if shared else [()]
    prompts = [(*start, *prompt) for prompt in prompts_of(count, vocabulary)]
    return [Example(tuple(Row((*p, option), len(p)) for option in OPTIONS), 0) for p in prompts]


def evaluation(model: torch.nn.Module, vocabulary: int, shared: int) -> Callable[[], object]:
    """Two full passes."""
    engine, examples = ScoringEngine(model), rows_of(2 * 2048 // TOKENS, vocabulary, shared)
    rows = [row for example in examples for row in example.rows]
    return torch.no_grad()(lambda: engine.score(rows))


def backpropagation(model: torch.nn.Module, vocabulary: int) -> Callable[[], object]:
    """A step of Adam, with dropout, as the Trainer makes it."""
    engine, objective = ScoringEngine(model.train()), Classification()
    batch = objective.batch(engine, rows_of(BATCH, vocabulary))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)

    def step() -> None:
        objective.measure(engine, batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def child(folder: str, job: str, dtype: str) -> dict[str, float]:
    """Peak of this process while it does the job, MiB, and seconds of the fastest of a few times."""
    from justforward import experiment  # noqa: F401

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config).eval().to(getattr(torch, dtype))
    if "LoRA" in job or "prefix" in job:
        model = adapted(model, "lora" if "LoRA" in job else "prefix")
    Path("/proc/self/clear_refs").write_text("5")
    if job.startswith("MeZO"):
        run = step_on(model, examples=BATCH).run
    elif job in ("zero-shot", "the same, one set"):
        run = evaluation(model, config.vocab_size, DEMONSTRATIONS * TOKENS if "one set" in job else 0)
    else:
        run = backpropagation(model, config.vocab_size)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"peak": resident("VmHWM"), "seconds": min(seconds)}


def in_a_process(*words: str) -> dict:
    """The JSON that a Python program prints."""
    command = [sys.executable, "-m", *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **GIVES_BACK})
    return json.loads(ran.stdout[ran.stdout.index("{") :])


def compare(shape: str, folder: str, dtype: str, jobs: tuple[str, ...]) -> None:
    """Print predicted and measured peaks of these jobs."""
    words = ["--dtype", dtype, "--batch", str(BATCH), "--tokens", str(TOKENS), "--memory", "1000", "--json"]
    plan = in_a_process("justforward", "plan", folder, *words, "--demonstrations", str(DEMONSTRATIONS))
    for job in plan["jobs"]:
        if job["name"] not in jobs:
            continue
        found = in_a_process("bench.plan", "child", folder, job["name"], dtype)
        predicted, overhead = job["total"] / MIB, job["memory"]["overhead"] / MIB
        beside = (predicted - overhead) / (found["peak"] - overhead)
        fed = 2 * 2048 // TOKENS if job["unit"] == "example" else 1
        report(
            f"plan, {shape}, {dtype}, {job['name']}",
            mib={"predicted": round(predicted), "measured": round(found["peak"]), "overhead": round(overhead)},
            ratio={"all": round(predicted / found["peak"], 3), "of the model": round(beside, 3)},
            goal=[1 - GOAL, 1 + GOAL],
            seconds={"predicted": round(job["seconds"] * fed, 3), "measured": round(found["seconds"], 3)},
        )


def main(shapes: tuple[str, ...] = ()) -> None:
    """See the module."""
    for shape in shapes or ("25m", "llama", "125m"):
        with tempfile.TemporaryDirectory() as folder:
            config_of(shape).save_pretrained(folder)
            for dtype in ("float32", "bfloat16"):
                more = ONCE if shape == SHAPE_OF_ALL and dtype == "float32" else ()
                compare(shape, folder, dtype, (*ALWAYS, *more))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(child(*sys.argv[2:])))
    else:
        main(tuple(sys.argv[1:]))
