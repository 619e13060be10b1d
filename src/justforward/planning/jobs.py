"""The jobs that a model can be used for: what each needs, how long it takes, and the command that runs it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace

from justforward.planning import memory
from justforward.planning.memory import Load, Memory
from justforward.planning.shape import ModelShape
from justforward.planning.target import Target
from justforward.tasks import Task

GUIDED_BLOCKS = 3
"""As --trainer guided trains unless told otherwise."""

AT_A_TIME = {"MultiRC": 2, "ReCoRD": 2, "DROP": 1}
"""Samples that `finetune.sh` feeds at a time, where that is not the batch."""


@dataclass(frozen=True)
class Asked:
    """The model that is planned for, and what with. dtype: of its weights; batch: samples per step."""

    model: str
    dtype: str
    batch: int
    task: Task
    task_file: str | None = None


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


@dataclass(frozen=True)
class Planner:
    """Makes the lines of the table. `overheads` are those of evaluation and of MeZO."""

    asked: Asked
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
            self.guided(),
            self.mezo("MeZO, all weights", "full", full),
            self.mezo("MeZO, LoRA", "lora", {"MODE": "lora", "LR": "5e-5", "EPS": "1e-2"}),
            self.four_bits({"MODE": "lora", "LR": "5e-5", "EPS": "1e-2"}),
            self.mezo("MeZO, prefix", "prefix", {"MODE": "prefix", "LR": "1e-3", "EPS": "1e-1"}),
            self.backpropagation("LoRA, backpropagation", "lora", {"MODE": "lora", "LR": "1e-4"}),
            self.backpropagation("Adam, all weights", "full", {"MODE": "ft", "LR": "1e-5"}),
        ]
        if self.target.device == "cuda":
            jobs.append(self.offloaded(full))
        return [job for job in jobs if self.shape.lora_widths is not None or "LoRA" not in job.name]

    def evaluations(self) -> list[Job]:
        """Zero-shot, and with demonstrations: a set for each sample, or one for all."""
        shape, load, shots = self.shape, self.load, memory.with_demonstrations(self.load)
        count = f" --num_train {load.demonstrations}" if load.demonstrations != Load.demonstrations else ""
        if self.asked.task.generation:
            plain, shown, shared = memory.generation(shape, load), memory.generation(shape, shots), None
        else:
            plain, shown = memory.zero_shot(shape, load), memory.zero_shot(shape, shots)
            shared = memory.shared_demonstrations(shape, load)
        jobs = [
            self.evaluation("zero-shot", load, plain, " --num_train 0"),
            self.evaluation("in-context learning", shots, shown, count),
        ]
        if shared is not None:
            jobs.append(self.evaluation("the same, one set", load, shared, f" --train_set_seed 0{count}"))
        return jobs

    def evaluation(self, name: str, fed: Load, needed: Memory, words: str) -> Job:
        """One evaluation; its time is that of one example."""
        seconds = self.seconds(memory.forward_flops(self.shape, replace(fed, rows=1)))
        return Job(name, replace(needed, overhead=self.overheads[0]), seconds, "example", self.script("icl.sh", words))

    def mezo(self, name: str, method: str, settings: dict[str, str]) -> Job:
        """A step of MeZO."""
        shape, load = self.shape, self.load
        needed = replace(memory.mezo(shape, load, method), overhead=self.overheads[1])
        seconds = self.seconds(memory.mezo_flops(shape, load), memory.draws(shape, load, method))
        return Job(name, needed, seconds, "step", self.script("mezo.sh", **settings))

    def four_bits(self, settings: dict[str, str]) -> Job:
        """A step of MeZO on LoRA over weights of 4 bits, which are made whole again a module at a time."""
        shape, load = self.shape, replace(self.load, width=2)
        needed = replace(memory.four_bits(shape, load), overhead=self.overheads[1])
        seconds = self.seconds(memory.mezo_flops(shape, load), memory.draws(shape, load, "lora"))
        plain = replace(self, asked=replace(self.asked, dtype="float16"))
        command = plain.script("mezo.sh", " --load_float16 False --load_4bit", **settings)
        return Job("MeZO, LoRA, 4 bits", needed, seconds, "step", command)

    def guided(self) -> Job:
        """A guided step in the last blocks; what the others give is computed once, before."""
        shape, load = self.shape, self.load
        needed = replace(memory.guided(shape, load, GUIDED_BLOCKS), overhead=self.overheads[0])
        seconds = self.seconds(memory.guided_flops(shape, load, GUIDED_BLOCKS))
        asked, name = self.asked, self.asked.task.name
        words = ["python", "run.py", "--task_name", name, "--model_name", asked.model, "--trainer", "guided"]
        words += ["--num_train", "1000", "--train_set_seed", "0", "--max_steps", "200", "--save_strategy", "no"]
        words += ["--per_device_train_batch_size", str(asked.batch), "--output_dir", f"result/{name}-guided"]
        words += [] if asked.task.generation else ["--train_as_classification"]
        words += [] if asked.dtype == "float32" else [f"--load_{asked.dtype}"]
        words += ["--task_file", asked.task_file] if asked.task_file else []
        return Job("guided, last blocks", needed, seconds, "step", shlex.join(words))

    def offloaded(self, settings: dict[str, str]) -> Job:
        """A step of MeZO with the weights in main memory: computing and copying at the same time."""
        shape, load = self.shape, self.load
        needed = replace(memory.offloaded(shape, load), overhead=self.overheads[1])
        copied = memory.link_bytes(shape, load) / memory.LINK
        seconds = max(self.seconds(memory.mezo_flops(shape, load)), copied)
        return Job("MeZO, offloaded", needed, seconds, "step", self.script("mezo.sh", " --zo_offload cpu", **settings))

    def backpropagation(self, name: str, method: str, settings: dict[str, str]) -> Job:
        """A step of fine-tuning; long samples are fed a few at a time."""
        shape, load = self.shape, self.load
        fed = replace(load, rows=min(load.rows, AT_A_TIME.get(self.asked.task.name.split("__")[0], load.rows)))
        needed = replace(memory.backpropagation(shape, fed, method), overhead=self.overheads[0])
        seconds = self.seconds(memory.backpropagation_flops(shape, load, method))
        if method == "full" and self.target.count > 1:
            command = self.script("finetune_fsdp.sh", **settings, NUM_GPU=str(self.target.count))
        else:
            command = self.script("finetune.sh", **settings)
        return Job(name, needed, seconds, "step", command)

    def seconds(self, flops: int, draws: int = 0) -> float:
        """What so much arithmetic takes; 0 where no rate is known."""
        return flops / self.rates.flops + draws * self.rates.draw if self.rates.flops else 0.0

    def script(self, name: str, words: str = "", **settings: str) -> str:
        """The line for a shell that runs a job as planned."""
        asked = self.asked
        variables = {"MODEL": asked.model, "TASK": asked.task.name, **settings}
        if name != "icl.sh":
            variables["BS"] = str(asked.batch)
        if asked.task_file:
            words += f" --task_file {shlex.quote(asked.task_file)}"
        if not name.startswith("finetune") and asked.dtype != "float16":
            words += " --load_float16 False" + " --load_bfloat16" * (asked.dtype == "bfloat16")
        return " ".join([*(f"{key}={shlex.quote(value)}" for key, value in variables.items()), f"bash {name}{words}"])
