"""Combinations of arguments that cannot work, each with the mend.

The rules are tables of (is it broken?, what to say); the first broken one is raised. What depends on the data or
on the model is checked where those are loaded; what `TrainingArguments` checks itself is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justforward.command_line.generator_checks import generator_rules
from justforward.command_line.zeroth_order_checks import method_rules, reward_rules

if TYPE_CHECKING:
    from justforward.command_line.job import JobArguments
    from justforward.tasks import Task

Rule = tuple[bool, str]

# Smallest sensible value of each number.
_AT_LEAST = {
    "num_train": 0,
    "num_dev": 0,
    "num_eval": 1,
    "num_train_sets": 1,
    "train_set_seed": 0,
    "max_length": 2,
    "bos_token_id": 0,
    "token_budget": 1,
    "zo_max_skipped": 1,
    "reward_retries": 0,
    "num_completions": 1,
    "zo_samples": 1,
    "zo_direction_groups": 1,
    "zo_check_steps": 0,
    "lora_r": 1,
    "lora_alpha": 1,
    "num_prefix": 1,
    "num_beams": 1,
    "top_k": 1,
    "max_new_tokens": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "num_train_epochs": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "save_total_limit": 1,
    "seed": 0,
    "data_seed": 0,
}
_LARGEST_SEED = 2**32 - 1
_SEEDS = ("train_set_seed", "seed", "data_seed")


def check(job: JobArguments, training_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError, one line, if these arguments cannot work together.

    Args:
        job: our own arguments.
        training_kwargs: those arguments of `TrainingArguments` that were given.
    """
    task = _task(job.task_name, job.task_file)
    generation = task.generation
    tables = (
        _task_file(job, has_rows=task.rows is not None),
        _harness(job, task),
        _numbers(job, training_kwargs),
        _sample_sets(job),
        _model(job),
        _calibration(job, generation=generation),
        _training(job, training_kwargs, generation=generation),
        _tuning(job),
        _blocks(job, training_kwargs),
        method_rules(job, training_kwargs),
        _generation(job, generation=generation),
        generator_rules(job, training_kwargs, generates=task.generates),
        _placement(job, training_kwargs),
    )
    for broken, message in (rule for table in tables for rule in table):
        if broken:
            raise ValueError(message)


def name_task(own: dict[str, Any]) -> None:
    """Where a task file is given, its task's own name is the task_name. Raises ValueError for another one beside it."""
    if own.get("task_file") is None:
        return
    name = _task("", own["task_file"]).name
    if own.setdefault("task_name", name) != name:
        raise ValueError(
            f"--task_name {own['task_name']} is another task than that of --task_file {own['task_file']}, {name}: give "
            "one of the two"
        )


def _task(name: str, file: str | None) -> Task:
    from justforward.tasks import find_task

    try:
        return find_task(name, file)
    except UnicodeEncodeError:  # it has a mend of its own
        raise
    except ValueError as error:
        raise ValueError(f"argument --{'task_name' if file is None else 'task_file'}: {error}") from None


def _task_file(job: JobArguments, *, has_rows: bool) -> list[Rule]:
    return [
        (
            has_rows and job.data_dir is not None,
            f"--data_dir is for tasks that do not say where their rows are, and {job.task_name} does: leave it out",
        ),
    ]


def _harness(job: JobArguments, task: Task) -> list[Rule]:
    given = [name for name in ("max_new_tokens", "eos_token") if getattr(job, name) != getattr(type(job), name)]
    return [
        (
            task.harness is not None and given != [],
            f"--{''.join(given[:1])}: how {job.task_name} generates stands in the task itself: leave it out",
        ),
    ]


def _numbers(job: JobArguments, given: Mapping[str, Any]) -> list[Rule]:
    rules: list[Rule] = []
    for name, least in _AT_LEAST.items():
        value = getattr(job, name) if hasattr(job, name) else given.get(name)
        rules.append((value is not None and value < least, f"argument --{name}: must be at least {least}, got {value}"))
    for name in _SEEDS:
        value = getattr(job, name) if hasattr(job, name) else given.get(name)
        rules.append(
            (value is not None and value > _LARGEST_SEED, f"argument --{name}: must be below 2**32, got {value}")
        )
    return rules


def _sample_sets(job: JobArguments) -> list[Rule]:
    unset = job.train_set_seed is None and job.num_train_sets is None
    sets = job.num_train_sets or 1
    return [
        (
            job.data_dir is not None and not Path(job.data_dir).is_dir(),
            f"argument --data_dir: there is no folder '{job.data_dir}'",
        ),
        (
            job.train_set_seed is not None and sets > 1,
            f"--num_train_sets {sets} draws its sets with the seeds 0 to {sets - 1}, --train_set_seed "
            f"{job.train_set_seed} draws one set: give only one of the two",
        ),
        (
            job.is_training and job.num_train == 0,
            f"--trainer {job.trainer} has nothing to train on: give --num_train, the number of training samples",
        ),
        (
            job.is_training and unset,
            f"--trainer {job.trainer} needs to know which training samples: give --train_set_seed 0 for one set, or "
            "--num_train_sets N for several",
        ),
        (
            bool(job.num_dev) and not job.is_training,
            "--num_dev is for choosing among checkpoints in training: leave it out, or give --trainer",
        ),
        (
            job.no_eval and not job.is_training,
            "--no_eval without a --trainer leaves nothing to do: leave it out, or give --trainer",
        ),
    ]


def _model(job: JobArguments) -> list[Rule]:
    loads = [f"--load_{name}" for name in ("float16", "bfloat16", "int8", "4bit") if getattr(job, f"load_{name}")]
    return [(len(loads) > 1, f"{' and '.join(loads)} exclude each other: weights have one type, give one of them")]


def _quantises(job: JobArguments) -> str:
    return "--load_int8" if job.load_int8 else "--load_4bit" if job.load_4bit else ""


def _calibration(job: JobArguments, *, generation: bool) -> list[Rule]:
    flag = "--sfc" if job.sfc else "--icl_sfc"
    return [
        (
            (job.sfc or job.icl_sfc) and generation,
            f"{flag} compares options, and {job.task_name} has none (its answers are generated): leave {flag} out",
        ),
        (
            job.icl_sfc and job.is_training,
            "--icl_sfc calibrates with demonstrations, and a trained model is evaluated without any: use --sfc",
        ),
        (
            job.icl_sfc and job.num_train == 0,
            "--icl_sfc calibrates with demonstrations, and there are none: give --num_train, or use --sfc",
        ),
    ]


def _training(job: JobArguments, given: Mapping[str, Any], *, generation: bool) -> list[Rule]:
    zo = job.trainer == "zo"
    mixed = "fp16" if given.get("fp16") else "bf16" if given.get("bf16") else ""
    evaluates = str(given.get("eval_strategy", "no")) != "no"
    return [
        (job.zo_eps <= 0, f"argument --zo_eps: must be above 0 (1e-3 is usual), got {job.zo_eps:g}"),
        (
            job.zo_direction_groups > job.zo_samples,
            f"--zo_direction_groups {job.zo_direction_groups} has a group for each direction at most, and --zo_samples "
            f"is {job.zo_samples}: raise the one or lower the other",
        ),
        (
            job.trainer in ("zo", "guided") and mixed != "",
            f"--{mixed} is mixed precision for gradients, and --trainer {job.trainer} has none: use "
            f"--load_{'bfloat16' if mixed == 'bf16' else 'float16'} for 16-bit weights",
        ),
        (
            job.trainer == "regular" and mixed == "fp16" and job.load_float16 and not (job.lora or job.prefix_tuning),
            "--fp16 scales gradients of float32 weights, and --load_float16 has none: leave one of them out",
        ),
        (
            job.save_trajectory and not zo,
            "--save_trajectory keeps the steps of MeZO instead of weights: use it with --trainer zo",
        ),
        *reward_rules(job, generation=generation),
        (
            job.train_as_classification and generation and job.is_training,
            f"--train_as_classification needs options, and {job.task_name} has none (its answers are generated): "
            "leave it out",
        ),
        (
            job.train_as_classification and not job.only_train_option and job.is_training,
            "--only_train_option False is for language-model training: leave it out, or leave out "
            "--train_as_classification",
        ),
        (
            job.is_training and bool(given.get("load_best_model_at_end")) and not job.num_dev,
            "--load_best_model_at_end would choose the checkpoint on the evaluation samples: give --num_dev, or leave "
            "it out",
        ),
        (
            job.is_training and evaluates and not job.num_dev,
            f"--eval_strategy {given.get('eval_strategy')} has no samples to evaluate on during training: give "
            "--num_dev, or leave it out",
        ),
    ]


def _tuning(job: JobArguments) -> list[Rule]:
    names, few = ("lora", "prefix_tuning", "tune_scales", "head_tuning", "linear_probing"), _quantises(job)
    chosen = [f"--{name}" for name in names if getattr(job, name)]
    return [
        (len(chosen) > 1, f"{' and '.join(chosen)} exclude each other: give one way of tuning"),
        (
            bool(chosen) and not job.is_training,
            f"{'/'.join(chosen)} says how to train, and nothing is trained: give --trainer, or leave it out",
        ),
        (
            few != "" and job.is_training and not (job.lora or job.prefix_tuning or job.tune_scales),
            f"{few} weights cannot be trained themselves: train an adapter over them with --lora or --prefix_tuning, "
            f"or their scales with --tune_scales, or leave {few} out",
        ),
        (
            few != "" and job.untie_emb,
            f"--untie_emb makes a head to be trained, and over {few} only adapters are: leave one of them out",
        ),
        (
            job.merge_lora and not (job.lora and job.save_model),
            "--merge_lora says how LoRA is saved: use it with --lora and --save_model",
        ),
        (
            job.merge_lora and few != "",
            f"--merge_lora would round LoRA's updates to the bits of {few}: leave out --merge_lora (and merge into "
            f"16-bit weights later), or {few}",
        ),
        (
            job.linear_probing and job.trainer == "zo",
            "--linear_probing fits the head by logistic regression, not by MeZO: use it with --trainer regular",
        ),
        (
            job.linear_probing and (job.train_as_classification or not job.only_train_option),
            "--linear_probing fits the tokens of the right options: leave out --train_as_classification and "
            "--only_train_option, or give --train_as_classification False --only_train_option True",
        ),
        (
            job.lp_early_stopping and not job.linear_probing,
            "--lp_early_stopping says when linear probing stops: use it with --linear_probing",
        ),
        (
            job.prefix_tuning and not job.no_reparam and job.prefix_init_by_real_act,
            "--no_reparam False makes the prefix from an MLP, which real activations cannot start: add "
            "--prefix_init_by_real_act False",
        ),
    ]


def _blocks(job: JobArguments, given: Mapping[str, Any]) -> list[Rule]:
    others = [f"--{name}" for name in ("prefix_tuning", "head_tuning", "linear_probing") if getattr(job, name)]
    blocks = job.train_blocks
    return [
        (
            blocks is not None and not job.is_training,
            "--train_blocks says what is trained, and nothing is: give --trainer, or leave it out",
        ),
        (
            blocks is not None and others != [],
            f"--train_blocks chooses blocks for full tuning and LoRA, not for {''.join(others[:1])}: leave one of "
            "them out",
        ),
        (
            job.trainer != "guided" and (job.guide_coefficients or job.guide_noise != 0),
            f"--guide_{'coefficients' if job.guide_coefficients else 'noise'} is for --trainer guided: leave it out",
        ),
        (
            not 0 <= job.guide_noise < float("inf"),
            f"argument --guide_noise: must be 0 or more, got {job.guide_noise:g}",
        ),
        (
            job.trainer == "guided" and job.zo_rounding == "compensated",
            "--trainer guided keeps nothing beside the weights: leave --zo_rounding compensated out",
        ),
        (
            job.trainer == "guided" and given.get("learning_rate") == 0,
            "--learning_rate is a factor of the step that --trainer guided measures: leave it out, or give 1",
        ),
        (
            blocks is not None and not re.fullmatch(r"(-?\d+)?:(-?\d+)?", blocks),
            f"argument --train_blocks: '{blocks}' is no range of blocks: give A:B (A counts from 0, B is left out), A: "
            "for all from A on, or -3: for the last three",
        ),
        (
            blocks is not None and (bool(given.get("fsdp")) or bool(given.get("torch_compile"))),
            "--train_blocks starts passes behind the frozen blocks, which neither --fsdp nor --torch_compile takes: "
            "leave them out",
        ),
        (
            job.kept_states is not None and blocks is None,
            "--kept_states is a folder for what frozen blocks give: use it with --train_blocks, or leave it out",
        ),
    ]


def _generation(job: JobArguments, *, generation: bool) -> list[Rule]:
    return [
        (
            generation and job.max_new_tokens >= job.max_length,
            f"--max_new_tokens {job.max_new_tokens} leaves no room for a prompt in --max_length {job.max_length}: "
            "lower the one or raise the other",
        ),
        (job.temperature <= 0, f"argument --temperature: must be above 0, got {job.temperature:g}"),
        (not 0 < job.top_p <= 1, f"argument --top_p: must be above 0 and at most 1, got {job.top_p:g}"),
        (job.eos_token == "", "argument --eos_token: must not be empty; it ends a generated answer"),
    ]


def _placement(job: JobArguments, given: Mapping[str, Any]) -> list[Rule]:
    shared, apart = bool(given.get("fsdp")), job.zo_offload != "none"
    zo = job.trainer == "zo"
    return [
        (
            apart and not zo,
            f"--zo_offload {job.zo_offload} is for training by forward passes: use it with --trainer zo",
        ),
        (
            apart and (shared or bool(given.get("torch_compile")) or _quantises(job) != ""),
            f"--zo_offload {job.zo_offload} keeps plain weights on the host of one process: leave out --fsdp, "
            "--torch_compile, --load_int8 and --load_4bit, or --zo_offload",
        ),
        (
            apart and job.zo_probe == "paired",
            f"--zo_offload {job.zo_offload} probes one sign at a time: leave --zo_probe out",
        ),
        (
            zo and shared and (job.prefix_tuning or job.non_diff or job.merge_lora),
            "--fsdp shares the model among processes, which must all call it equally often: with --trainer zo leave "
            "out --prefix_tuning, --non_diff and --merge_lora, or --fsdp",
        ),
        (
            zo and bool(given.get("save_on_each_node")) and bool(given.get("load_best_model_at_end")),
            "--save_on_each_node does not share which checkpoint is the best: leave out --load_best_model_at_end",
        ),
        (
            zo and shared and job.zo_probe not in ("auto", "copy"),
            f"--zo_probe {job.zo_probe} takes no weights that processes share: leave it out, or --fsdp",
        ),
    ]
