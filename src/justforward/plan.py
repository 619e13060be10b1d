"""`justforward plan MODEL`: what each kind of job needs on a model, whether it fits, how long it takes, how to run it.

Only the model's configuration is read. The formulas are those of `justforward.planning`.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shlex
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, OPTConfig

from justforward import machine, planning
from justforward.argument_parser import Parser
from justforward.machine import GIB
from justforward.models.shape import ModelShape, read_shape
from justforward.objectives import Classification, Example
from justforward.optim import MeZO
from justforward.optim.trajectory import Layout
from justforward.planning import Load, Memory
from justforward.prompts import Row
from justforward.scoring import ScoringEngine
from justforward.tasks import find_task

DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}

TIGHT = 0.9
"""A memory that is filled more than this leaves little for what the formulas do not know."""

TEXT_TOKENS = 16
"""Taken for an option or an answer that is a text of its own; one that is a word is one token."""

AT_A_TIME = {"MultiRC": 2, "ReCoRD": 2, "DROP": 1}
"""Samples that `finetune.sh` feeds at a time, where that is not the batch."""

STEPS = 20_000
"""Of a run with `mezo.sh`."""


@dataclass(frozen=True)
class Target:
    """What jobs are to fit: `count` devices ("cuda" or "cpu") of `memory` bytes each."""

    device: str
    count: int
    memory: int

    def fit(self, memory: Memory) -> str:
        """Whether it fits: "yes", "tight", "on 2" (spread over so many GPUs), or "no"."""
        for count in range(1, self.count + 1):
            needed = memory.spread(count).total
            if needed <= self.memory:
                return f"on {count}" if count > 1 else "tight" if needed > TIGHT * self.memory else "yes"
        return "no"


@dataclass(frozen=True)
class Rates:
    """Floating-point operations per second, and seconds per draw of noise (0: not counted)."""

    flops: float
    draw: float


@dataclass(frozen=True)
class Job:
    """A line of the table. seconds: of a step, or of an evaluated example (`unit`)."""

    name: str
    memory: Memory
    seconds: float
    unit: str
    command: str


def plan_command(words: list[str]) -> None:
    """`justforward plan MODEL ...`: print the table, or JSON."""
    given = parse(words)
    logging.getLogger("transformers").setLevel(logging.ERROR)  # it would warn of what it thinks of configurations
    shape = read_shape(given.model, trust_remote_code=given.trust_remote_code)
    target = find_target(given)
    load = find_load(given, shape, target)
    taken = overheads(target)  # before the rates, whose measurement would load what an evaluation does not
    planner = Planner(given, shape, load, target, taken, find_rates(given, shape, target))
    print(json.dumps(as_json(planner), indent=2) if given.json else "\n".join(as_table(planner)))


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
        return planning.GPU_OVERHEAD, planning.GPU_OVERHEAD
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


@dataclass(frozen=True)
class Planner:
    """Makes the lines of the table. `overheads` are those of evaluation and of MeZO."""

    given: argparse.Namespace
    shape: ModelShape
    load: Load
    target: Target
    overheads: tuple[int, int]
    rates: Rates

    def jobs(self) -> list[Job]:
        """All of them, without those that the model does not allow."""
        full = {"MODE": "ft", "LR": "1e-7", "EPS": "1e-3"}
        jobs = [
            *self.evaluations(),
            self.mezo("MeZO, all weights", "full", full),
            self.mezo("MeZO, LoRA", "lora", {"MODE": "lora", "LR": "5e-5", "EPS": "1e-2"}),
            self.mezo("MeZO, prefix", "prefix", {"MODE": "prefix", "LR": "1e-3", "EPS": "1e-1"}),
            self.backpropagation("LoRA, backpropagation", "lora", {"MODE": "lora", "LR": "1e-4"}),
            self.backpropagation("Adam, all weights", "full", {"MODE": "ft", "LR": "1e-5"}),
        ]
        if self.target.device == "cuda":
            jobs.append(self.offloaded(full))
        return [job for job in jobs if self.shape.lora_widths is not None or "LoRA" not in job.name]

    def evaluations(self) -> list[Job]:
        """Zero-shot, and with demonstrations: a set for each sample, or one for all."""
        shape, load, shots = self.shape, self.load, planning.with_demonstrations(self.load)
        count = f" --num_train {load.demonstrations}" if load.demonstrations != Load.demonstrations else ""
        if self.given.task.generation:
            plain, shown, shared = planning.generation(shape, load), planning.generation(shape, shots), None
        else:
            plain, shown = planning.zero_shot(shape, load), planning.zero_shot(shape, shots)
            shared = planning.shared_demonstrations(shape, load)
        jobs = [
            self.evaluation("zero-shot", load, plain, " --num_train 0"),
            self.evaluation("in-context learning", shots, shown, count),
        ]
        if shared is not None:
            jobs.append(self.evaluation("the same, one set", load, shared, f" --train_set_seed 0{count}"))
        return jobs

    def evaluation(self, name: str, fed: Load, memory: Memory, words: str) -> Job:
        """One evaluation; its time is that of one example."""
        seconds = self.seconds(planning.forward_flops(self.shape, replace(fed, rows=1)))
        return Job(name, replace(memory, overhead=self.overheads[0]), seconds, "example", self.script("icl.sh", words))

    def mezo(self, name: str, method: str, settings: dict[str, str]) -> Job:
        """A step of MeZO."""
        shape, load = self.shape, self.load
        memory = replace(planning.mezo(shape, load, method), overhead=self.overheads[1])
        seconds = self.seconds(planning.mezo_flops(shape, load), planning.draws(shape, load, method))
        return Job(name, memory, seconds, "step", self.script("mezo.sh", **settings))

    def offloaded(self, settings: dict[str, str]) -> Job:
        """A step of MeZO with the weights in main memory: computing and copying at the same time."""
        shape, load = self.shape, self.load
        memory = replace(planning.offloaded(shape, load), overhead=self.overheads[1])
        copied = planning.link_bytes(shape, load) / planning.LINK
        seconds = max(self.seconds(planning.mezo_flops(shape, load)), copied)
        return Job("MeZO, offloaded", memory, seconds, "step", self.script("mezo.sh", " --zo_offload cpu", **settings))

    def backpropagation(self, name: str, method: str, settings: dict[str, str]) -> Job:
        """A step of fine-tuning; long samples are fed a few at a time."""
        shape, load = self.shape, self.load
        fed = replace(load, rows=min(load.rows, AT_A_TIME.get(self.given.task.name.split("__")[0], load.rows)))
        memory = replace(planning.backpropagation(shape, fed, method), overhead=self.overheads[0])
        seconds = self.seconds(planning.backpropagation_flops(shape, load, method))
        if method == "full" and self.target.count > 1:
            command = self.script("finetune_fsdp.sh", **settings, NUM_GPU=str(self.target.count))
        else:
            command = self.script("finetune.sh", **settings)
        return Job(name, memory, seconds, "step", command)

    def seconds(self, flops: int, draws: int = 0) -> float:
        """What so much arithmetic takes; 0 where no rate is known."""
        return flops / self.rates.flops + draws * self.rates.draw if self.rates.flops else 0.0

    def script(self, name: str, words: str = "", **settings: str) -> str:
        """The line for a shell that runs a job as planned."""
        given = self.given
        variables = {"MODEL": given.model, "TASK": given.task.name, **settings}
        if name != "icl.sh":
            variables["BS"] = str(given.batch)
        if given.task_file:
            words += f" --task_file {shlex.quote(given.task_file)}"
        if not name.startswith("finetune") and given.dtype != "float16":
            words += " --load_float16 False" + " --load_bfloat16" * (given.dtype == "bfloat16")
        return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in variables.items()), f"bash {name}{words}"])


def as_json(planner: Planner) -> dict[str, Any]:
    """The plan as JSON values, in bytes and seconds."""
    fits = planner.target.fit
    return {
        "model": planner.given.model,
        "dtype": planner.given.dtype,
        "shape": asdict(planner.shape),
        "load": asdict(planner.load),
        "target": asdict(planner.target),
        "rates": asdict(planner.rates),
        "log_bytes_per_step": Layout(1, 0).record_size,
        "jobs": [{**asdict(job), "total": job.memory.total, "fits": fits(job.memory)} for job in planner.jobs()],
    }


def as_table(planner: Planner) -> list[str]:
    """The plan as lines of text, in GiB."""
    given, load, jobs = planner.given, planner.load, planner.jobs()
    size = Layout(1, 0).record_size
    return [
        f"{given.model}: {planner.shape.parameters:,} weights in {planner.shape.layers} blocks, {given.dtype}",
        f"{given.task.name}, batches of {load.rows} samples of {load.tokens} tokens, up to {load.budget} tokens a pass",
        f"to fit {_describe(planner.target)}; {_speed(given, planner.rates)}",
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


def _speed(given: argparse.Namespace, rates: Rates) -> str:
    if not rates.flops:
        return "no such GPU is here to measure: give --tflops for times"
    return f"{rates.flops / 1e12:.3g} TFLOP/s {'as given' if given.tflops else 'measured'}"
