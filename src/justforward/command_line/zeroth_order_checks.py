"""Combinations of arguments of training by forward passes that cannot work, each with the mend; see `checks`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from justforward.optim.methods import METHODS

if TYPE_CHECKING:
    from justforward.command_line.job import JobArguments

Rule = tuple[bool, str]


def check_auto(job: JobArguments, given: Mapping[str, Any], auto: Sequence[str]) -> None:
    """Raise ValueError, one line, where the arguments named in `auto` cannot be measured before training."""
    words = " and ".join(f"--{name} auto" for name in auto)
    rules: list[Rule] = [
        (job.trainer != "zo", f"{words} is measured with MeZO's probes: use it with --trainer zo, or give numbers"),
        (job.non_diff, f"{words} measures slopes, and a metric (--non_diff) is a staircase: give numbers"),
        (
            "learning_rate" in auto and job.zo_shaping != "none",
            f"--learning_rate auto is for losses, and --zo_shaping {job.zo_shaping} replaces them: give a number",
        ),
        (
            "learning_rate" in auto and _rule(job) != "sgd",
            f"--learning_rate auto measures plain steps, and the rule is {_rule(job)}: give a number",
        ),
        (bool(given.get("fsdp")), f"{words} does not measure weights that processes share (--fsdp): give numbers"),
    ]
    for broken, message in rules:
        if auto and broken:
            raise ValueError(message)


def _rule(job: JobArguments) -> str:
    return job.zo_rule or METHODS[job.zo_method].rule


def method_rules(job: JobArguments, given: Mapping[str, Any]) -> list[Rule]:
    """The rules on --zo_method and what it is made of."""
    directions, plain = job.zo_directions or METHODS[job.zo_method].directions, f"--zo_method {job.zo_method}"
    dense = directions == "dense" and _rule(job) == "sgd"
    if job.trainer != "zo":
        return [
            (job.tune_scales, "--tune_scales moves scales where they lie, by forward passes: use --trainer zo"),
            (job.zo_cuda_graphs, "--zo_cuda_graphs records the probes of --trainer zo: use it, or leave it out"),
        ]
    return [
        *_graph_rules(job, given, directions),
        (
            job.tune_scales and (not dense or job.zo_split or job.zo_probe not in ("auto", "copy", "in_place")),
            "--tune_scales moves scales where they lie: use dense directions, and leave --zo_split and --zo_probe out",
        ),
        (job.tune_scales and bool(given.get("fsdp")), "--tune_scales is for one copy of a model: leave --fsdp out"),
        (job.zo_clip is not None and job.zo_clip <= 0, f"argument --zo_clip: must be above 0, got {job.zo_clip}"),
        (
            job.zo_split and (job.zo_sides == 1 or job.zo_samples < 2),
            f"--zo_split divides a batch among {job.zo_samples} directions on {job.zo_sides} side(s): it takes "
            "--zo_sides 2, and --zo_samples 2 or more",
        ),
        (
            job.zo_split and job.zo_direction_groups > 1,
            "--zo_split gives every direction a share of each batch: leave --zo_direction_groups out",
        ),
        (
            job.zo_shaping == "deviation" and job.zo_sides * job.zo_samples < 2,
            "--zo_shaping deviation divides by that of a step's losses, and there is one: raise --zo_samples",
        ),
        (
            directions != "dense" and job.zo_distribution != "gaussian",
            f"--zo_distribution {job.zo_distribution} is for dense directions, and these are {directions}: leave it "
            "out",
        ),
        (
            not dense and (bool(given.get("fsdp")) or job.zo_offload != "none"),
            f"{plain}: {directions} directions and the rule {_rule(job)} take whole weights on one device: leave out "
            "--fsdp and --zo_offload, or use dense directions and sgd",
        ),
        (
            directions != "dense" and job.zo_probe == "in_place",
            f"--zo_probe in_place takes dense directions, and these are {directions}: leave it out",
        ),
    ]


def _graph_rules(job: JobArguments, given: Mapping[str, Any], directions: str) -> list[Rule]:
    names = ("torch_compile", "torch_compile_backend", "torch_compile_mode", "fsdp", "bf16", "fp16", "use_cpu")
    barred = [name for name in names if given.get(name)]
    barred += [name for name in ("prefix_tuning", "non_diff") if getattr(job, name)]
    barred += ["zo_offload"] if job.zo_offload != "none" else []
    return [
        (
            job.zo_cuda_graphs and barred != [],
            "--zo_cuda_graphs records plain passes over weights that stay on one GPU: leave "
            f"--{''.join(barred[:1])} out",
        ),
        (
            job.zo_cuda_graphs and (directions != "dense" or job.zo_split),
            f"--zo_cuda_graphs takes dense directions of a whole batch, and {_divided(job)} has others: leave one of "
            "them out",
        ),
    ]


def _divided(job: JobArguments) -> str:
    if job.zo_directions is not None:
        return f"--zo_directions {job.zo_directions}"
    return f"--zo_method {job.zo_method}" if METHODS[job.zo_method].directions != "dense" else "--zo_split"


def reward_rules(job: JobArguments, *, generation: bool) -> list[Rule]:
    """The rules on --non_diff and what it optimises."""
    judged = job.reward is not None and job.reward.startswith(("command:", "http://", "https://"))
    asking = [f"--{name}" for name in ("reward_timeout", "reward_retries") if getattr(job, name) != _default(job, name)]
    return [
        (
            job.reward is not None and not job.non_diff,
            "--reward names what to optimise instead of a loss: give --non_diff with it, or leave it out",
        ),
        (
            job.non_diff and job.train_as_classification,
            "--train_as_classification chooses a loss and --non_diff replaces the loss: leave one of them out",
        ),
        (
            job.non_diff and job.trainer not in ("zo", "guided"),
            "--non_diff optimises a metric that has no gradient: use it with --trainer zo or guided",
        ),
        (
            asking != [] and not judged,
            f"{' and '.join(asking)}: for a --reward that is asked for, command:PROGRAM or http://..., and none is: "
            "leave it out",
        ),
        (job.reward_timeout <= 0, f"argument --reward_timeout: must be above 0 seconds, got {job.reward_timeout:g}"),
        (
            job.num_completions > 1 and not (job.non_diff and generation and job.sampling),
            "--num_completions is of texts that are sampled for a reward: give --non_diff --sampling and a task whose "
            "answers are generated, or leave it out",
        ),
    ]


def _default(job: JobArguments, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(job) if field.name == name)
