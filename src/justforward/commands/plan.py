"""`justforward plan MODEL`: what each kind of job needs on a model, whether it fits, how long it takes, how to run it.

Only the model's configuration is read. The formulas are those of `justforward.planning.memory`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from dataclasses import asdict, fields
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OPTConfig

from justforward import machine
from justforward.command_line.parser import Parser
from justforward.machine import GIB
from justforward.optim import MeZO
from justforward.optim.log import Layout
from justforward.optim.methods import METHODS
from justforward.planning.jobs import Asked, Job, Planner, Rates
from justforward.planning.memory import GPU_OVERHEAD, Load, Memory
from justforward.planning.shape import ModelShape, read_shape
from justforward.planning.target import Target
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.tasks import find_task
from justforward.training.objectives import Classification, Example

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}

TEXT_TOKENS = 16
"""Taken for an option or an answer that is a text of its own; one that is a word is one token."""

STEPS = 20_000
"""Of a run with `mezo.sh`."""


def plan_command(words: list[str]) -> None:
    """`justforward plan MODEL ...`: print the table, or JSON."""
    given = parse(words)
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it would warn of what it thinks of configurations
    shape = read_shape(given.model, trust_remote_code=given.trust_remote_code, method=given.zo_method)
    target = find_target(given)
    load = find_load(given, shape, target)
    taken = overheads(target)  # before the rates, whose measurement would load what an evaluation does not
    asked = Asked(given.model, given.dtype, given.batch, given.task, given.task_file)
    planner = Planner(asked, shape, load, target, taken, find_rates(given, shape, target))
    print(json.dumps(as_json(planner), indent=2) if given.json else "\n".join(as_table(planner, given.tflops)))


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments. Raises ValueError for those that do not fit."""
    parser = Parser(prog="justforward plan", description="What a model needs, from its configuration alone.")
    parser.add_argument("model", help="hub id, or a folder with config.json; no weights are needed")
    parser.add_argument("--gpus", help="GPUs to fit, as COUNTxGIB: 1x24; default: those of this machine")
    parser.add_argument("--memory", type=float, help="main memory to fit, in GiB; default without GPUs: this machine's")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of the weights (default: float16)")
    parser.add_argument("--batch", type=int, default=16, help="samples per step (default: 16)")
    parser.add_argument("--tokens", type=int, default=256, help="tokens per sample (default: 256)")
    parser.add_argument("--demonstrations", type=int, default=32, help="of in-context learning (default: 32)")
    parser.add_argument("--task_name", "--task", help="the task (default: SST2)")
    parser.add_argument("--task_file", help="a task of your own, in place of --task_name")
    parser.add_argument("--zo_method", choices=METHODS, default="mezo", help="of MeZO with all weights (default: mezo)")
    parser.add_argument("--tflops", type=float, help="speed to compute times with; default: measured here")
    parser.add_argument("--trust_remote_code", action="store_true", help="let a repository run its own Python code")
    parser.add_argument("--json", action="store_true", help="print JSON, in bytes and seconds")
    given = parser.parse_args(words)
    if given.task_name and given.task_file:
        raise ValueError("--task_name and --task_file exclude each other")
    given.task = find_task(given.task_name or "SST2", given.task_file)
    for name in ("memory", "batch", "tokens", "demonstrations", "tflops"):
        if (value := getattr(given, name)) is not None and not 0 < value < math.inf:
            raise ValueError(f"argument --{name}: must be a finite number above 0, got {value:g}")
    given.gpus = given.gpus and machine.read_gpus(given.gpus)
    if given.gpus and given.memory:
        raise ValueError("--gpus and --memory exclude each other: a job runs on GPUs or in main memory")
    return given


def find_target(given: argparse.Namespace) -> Target:
    """The memory that is asked for, or this machine's."""
    if given.gpus:
        return Target("cuda", len(given.gpus), min(given.gpus))
    if given.memory:
        return Target("cpu", 1, int(given.memory * GIB))
    if found := machine.gpus():
        return Target("cuda", len(found), min(gpu.memory for gpu in found))
    return Target("cpu", 1, machine.main_memory())


def find_load(given: argparse.Namespace, shape: ModelShape, target: Target) -> Load:
    """What is fed. Raises ValueError for rows that are too long for the model."""
    longest = min(2048, shape.positions or 2048)
    if given.tokens > longest:
        raise ValueError(f"argument --tokens: rows of {given.model} have at most {longest} tokens, got {given.tokens}")
    return Load(
        rows=given.batch,
        tokens=given.tokens,
        scored=1 if given.task.words else min(TEXT_TOKENS, given.tokens),
        width=DTYPES[given.dtype],
        device=target.device,
        demonstrations=given.demonstrations,
        longest=longest,
    )


def find_rates(given: argparse.Namespace, shape: ModelShape, target: Target) -> Rates:
    """The given speed, or what this machine measures on the planned device; 0 for a GPU that is not here."""
    if given.tflops:
        return Rates(given.tflops * 1e12, 0.0)
    if target.device == "cuda" and not machine.gpus():
        return Rates(0.0, 0.0)
    dtype = getattr(torch, given.dtype)
    product = machine.matmul_rate(dtype, width=shape.hidden, device=target.device)
    return Rates(product, machine.noise_rate(dtype, device=target.device))


def overheads(target: Target) -> tuple[int, int]:
    """Bytes that the program takes beside the model, when it evaluates and when it trains with MeZO.

    In main memory: what this process takes once it has imported what a job imports and run both on a tiny model.
    """
    if target.device == "cuda":
        return GPU_OVERHEAD, GPU_OVERHEAD
    from justforward import experiment  # noqa: F401

    sizes: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 64}
    model = AutoModelForCausalLM.from_config(OPTConfig(**sizes, vocab_size=128, word_embed_proj_dim=64)).eval()
    examples = [Example((Row((2, *range(5, 40), 50 + i), 36),), 0) for i in range(2)]
    engine, objective = ScoringEngine(model), Classification()
    batch = objective.batch(engine, examples)
    with torch.no_grad():
        objective.measure(engine, batch)
    machine.matmul_rate(torch.float32, seconds=0)  # the libraries' working memory
    evaluating = machine.resident()
    mezo = MeZO(model.named_parameters(), model=model, probe="just_in_time")
    mezo.step(lambda: objective.measure(engine, batch).loss)
    return evaluating, machine.resident()


def as_json(planner: Planner) -> dict[str, Any]:
    """The plan as JSON values, in bytes and seconds."""
    fits = planner.target.fit
    return {
        "model": planner.asked.model,
        "dtype": planner.asked.dtype,
        "shape": asdict(planner.shape),
        "load": asdict(planner.load),
        "target": asdict(planner.target),
        "rates": asdict(planner.rates),
        "log_bytes_per_step": Layout(1, 0).record_size,
        "jobs": [{**asdict(job), "total": job.memory.total, "fits": fits(job.memory)} for job in planner.jobs()],
    }


def as_table(planner: Planner, tflops: float | None) -> list[str]:
    """The plan as lines of text, in GiB. tflops: the speed that was given, if one was."""
    asked, load, jobs = planner.asked, planner.load, planner.jobs()
    size = Layout(1, 0).record_size
    return [
        f"{asked.model}: {planner.shape.parameters:,} weights in {planner.shape.layers} blocks, {asked.dtype}",
        f"{asked.task.name}, batches of {load.rows} samples of {load.tokens} tokens, up to {load.budget} tokens a pass",
        f"to fit {_describe(planner.target)}; {_speed(planner.rates, given=tflops is not None)}",
        "",
        *_lines(planner, jobs),
        "",
        f"A MeZO run logs {size} bytes per step: {size * STEPS / 1000:.0f} kB for {STEPS:,} steps.",
        "In a checkout, whose scripts these are:",
        *(f"{job.name}:  {job.command}" for job in jobs),
    ]


def _lines(planner: Planner, jobs: list[Job]) -> list[str]:
    parts = [field.name for field in fields(Memory)]
    rows = [["GiB", "total", *parts, "fits", "time"]]
    for job in jobs:
        sizes = [job.memory.total, *(getattr(job.memory, part) for part in parts)]
        time = f"{job.seconds:.3g} s/{job.unit}" if planner.rates.flops else "-"
        rows.append([job.name, *(f"{size / GIB:.2f}" for size in sizes), planner.target.fit(job.memory), time])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _describe(target: Target) -> str:
    size = f"{target.memory / GIB:.1f} GiB"
    if target.device == "cpu":
        return f"{size} of main memory"
    return f"{target.count} GPU{'s' if target.count > 1 else ''} of {size}"


def _speed(rates: Rates, *, given: bool) -> str:
    if not rates.flops:
        return "no such GPU is here to measure: give --tflops for times"
    return f"{rates.flops / 1e12:.3g} TFLOP/s {'as given' if given else 'measured'}"
