"""What `--generator vllm` cannot be combined with, each with the mend; see `checks`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from justforward.command_line.job import JobArguments

Rule = tuple[bool, str]


def generator_rules(job: JobArguments, given: Mapping[str, Any], *, generates: bool) -> list[Rule]:
    """The rules on --generator; `generates`: whether the task's answers are."""
    plain = job.generator_memory == type(job).generator_memory
    if job.generator != "vllm":
        return [(not plain, "--generator_memory is for --generator vllm: leave it out")]
    told = "--generator vllm"
    others = ("load_int8", "load_4bit", "tune_scales", "prefix_tuning", "merge_lora", "trust_remote_code")
    unknown = [f"--{name}" for name in others if getattr(job, name)]
    unknown += ["--fsdp"] if given.get("fsdp") else []
    unknown += [f"--zo_offload {job.zo_offload}"] if job.zo_offload != "none" else []
    return [
        (
            importlib.util.find_spec("vllm") is None,
            f"{told} needs the package vllm: pip install 'justforward[vllm]', or leave it out",
        ),
        (not generates, f"{told} writes texts, and {job.task_name} has none to write: leave it out"),
        (
            job.trainer in ("guided", "regular"),
            f"{told} is for evaluation and for --trainer zo: leave it out, or give another --trainer",
        ),
        (
            unknown != [],
            f"{told} takes plain weights of one process, or LoRA over them: leave out {' and '.join(unknown)}, or "
            f"{told}",
        ),
        (job.num_beams > 1, f"--num_beams {job.num_beams}: {told} searches no beams: leave one of them out"),
        (
            job.zo_probe in ("paired", "just_in_time"),
            f"--zo_probe {job.zo_probe} never holds moved weights, which {told} is to be given: use copy or in_place",
        ),
        (
            job.is_training and (job.num_train_sets or 1) > 1,
            f"{told} trains one set in a process: give --train_set_seed in place of --num_train_sets",
        ),
        (
            not 0 < job.generator_memory < 1,
            f"argument --generator_memory: must be between 0 and 1, got {job.generator_memory:g}",
        ),
    ]
