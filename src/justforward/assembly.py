"""From arguments to the parts of a job: its processes, the model in its place, what evaluates and what trains it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import TrainingArguments
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from justforward import launcher
from justforward.auto.measure import LossProbe, Proposal, batch_closures, propose
from justforward.command_line.arguments import Parsed
from justforward.command_line.job import JobArguments
from justforward.models.adapters import adapter_folder
from justforward.models.blocks import chosen, find_blocks
from justforward.models.loading import LoadedModel
from justforward.models.logged import find_log
from justforward.models.recipe import ModelRecipe
from justforward.models.residual import find_stream
from justforward.models.tuning import TuningSettings, choose
from justforward.optim.build import build
from justforward.optim.directions.base import Directions
from justforward.optim.distribution.offload import Offload, to_file
from justforward.optim.distribution.ranks import join_cpu_ranks
from justforward.optim.methods import get_method
from justforward.optim.rules.base import Rule
from justforward.scoring import ScoringEngine
from justforward.scoring.chat import ChatEncoder, encoder_of
from justforward.scoring.evaluation import Evaluator
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.scoring.kept import UpperBlocks, keep
from justforward.scoring.prompts import PromptEncoder, Row
from justforward.scoring.vllm_generator import VllmGenerator
from justforward.tasks import Splits, Task, as_conversations, find_task
from justforward.tasks.sampling import TrainSet, train_sets
from justforward.training.guided_trainer import GuidedTrainer
from justforward.training.judges import REWARDS_FILE
from justforward.training.objective_trainer import ObjectiveMeZOTrainer, ObjectiveTrainer
from justforward.training.objectives import OBJECTIVES, Example, Objective
from justforward.training.rewards import Reward, RewardObjective, find_reward

AnyTrainer = ObjectiveTrainer | ObjectiveMeZOTrainer | GuidedTrainer


def task_of(job: JobArguments) -> Task:
    """The task that the arguments name, as texts or as conversations. Raises ValueError, in one line."""
    task = as_conversations(find_task(job.task_name, job.task_file), chat=job.chat_template, system=job.system_prompt)
    if task.is_whole:
        _check_whole(job, task)
    return task


def sets_of(job: JobArguments, splits: Splits) -> list[TrainSet]:
    """The samples that the arguments draw for training and development, or as demonstrations."""
    return train_sets(
        len(splits.train),
        num_train=job.num_train,
        num_dev=job.num_dev,
        num_train_sets=job.num_train_sets,
        train_set_seed=job.train_set_seed,
        num_eval_samples=min(job.num_eval or len(splits.validation), len(splits.validation)),
    )


def _check_whole(job: JobArguments, task: Task) -> None:
    """Raise ValueError for what texts that are learned as they are have no use for."""
    if task.text is not None and task.chat:
        raise ValueError(f"--chat_template: {task.name} is of plain texts, which are no turns: leave it out")
    for name in ("train_as_classification", "non_diff", "linear_probing", "sfc", "icl_sfc"):
        if getattr(job, name):
            raise ValueError(f"--{name} is for tasks with answers, and {task.name} is of whole texts: leave it out")
    if job.num_train and not job.is_training:
        raise ValueError(f"--num_train: {task.name} is of whole texts, which take no demonstrations: leave it out")


@dataclass(frozen=True)
class Assembly:
    """Makes the parts that the arguments describe."""

    job: JobArguments
    arguments: TrainingArguments
    task: Task

    def recipe(self) -> ModelRecipe:
        """What the model before training is a function of."""
        job = self.job
        return ModelRecipe(
            model_name=job.model_name,
            base_model=job.base_model,
            dtype=job.dtype,
            max_length=job.max_length,
            bos_token_id=job.bos_token_id,
            seed=self.arguments.seed,
            tuning=self._tuning() if job.is_training and not job.linear_probing else None,
        )

    def build(self) -> LoadedModel:
        """The model where it is to be: on the device, on the host with the device computing, or (FSDP) to be spread."""
        job, arguments = self.job, self.arguments
        if job.generator == "vllm" and arguments.world_size > 1:
            raise ValueError("--generator vllm is for one process: start one, or leave it out")
        if job.zo_cuda_graphs and (arguments.device.type != "cuda" or torch.version.cuda is None):
            raise ValueError("--zo_cuda_graphs is for an NVIDIA GPU, and there is none: leave it out")
        if job.linear_probing and (adapter_folder(job.model_name) or find_log(job.model_name)):
            raise ValueError(
                f"--linear_probing writes into the head of a plain model: make one of {job.model_name} with "
                "`justforward export`"
            )
        if job.zo_offload == "none":
            return self._load("cpu" if arguments.fsdp and job.trainer == "zo" else arguments.device)
        loaded = self._load("cpu")
        if job.zo_offload == "disk":
            to_file(loaded.model, arguments.output_dir or ".")
        if job.zo_offload == "cpu" or arguments.device.type != "cpu":
            Offload(loaded.model, arguments.device, pinned=job.zo_offload == "cpu")
        return loaded

    def _load(self, device: torch.device | str) -> LoadedModel:
        job = self.job
        spread = self.arguments.world_size == 1 and job.zo_offload == "none" and job.trainer != "guided"
        spread = spread and not job.zo_cuda_graphs
        return self.recipe().build(
            device=device,
            auto_device=spread and not job.no_auto_device,
            trust_remote_code=job.trust_remote_code,
        )

    def _tuning(self) -> TuningSettings:
        job = self.job
        return TuningSettings(
            method=choose(lora=job.lora, prefix=job.prefix_tuning, head=job.head_tuning, scales=job.tune_scales),
            untie=job.untie_emb,
            lora_r=job.lora_r,
            lora_alpha=job.lora_alpha,
            num_prefix=job.num_prefix,
            reparametrise=not job.no_reparam,
            prefix_from_activations=job.prefix_init_by_real_act,
            blocks=job.train_blocks,
            stream=job.trainer == "guided",
        )

    def evaluator(self, loaded: LoadedModel) -> Evaluator:
        """What evaluates a model on the task."""
        job = self.job
        embedding: Any = loaded.model.get_input_embeddings()
        encoder = encoder_of(
            loaded.tokenizer,
            self.task,
            max_length=loaded.max_length,
            max_new_tokens=self._new_tokens,
            bos_token_id=loaded.bos_token_id,
            embedding_rows=embedding.weight.shape[0],
            refuse_lone_options=True,
        )
        device = self.arguments.device if job.zo_offload != "none" else None
        return Evaluator(
            encoder,
            ScoringEngine(loaded.model, token_budget=job.token_budget, device=device),
            self._generator(loaded, encoder, device) if self.task.generates else None,
            calibration="sfc" if job.sfc else "icl_sfc" if job.icl_sfc else None,
            verbose=job.verbose,
        )

    @property
    def _new_tokens(self) -> int:
        """The length of generated answers: as the arguments say, or the task of another harness."""
        return self.job.max_new_tokens if self.task.harness is None else self.task.harness.most_tokens

    def _generator(self, loaded: LoadedModel, encoder: PromptEncoder, device: torch.device | None) -> Generator:
        job, end = self.job, encoder.end_of_turn if isinstance(encoder, ChatEncoder) else None
        ends = (job.eos_token,) if self.task.harness is None else self.task.harness.ends
        if self.task.is_whole and isinstance(encoder, ChatEncoder) and job.eos_token == type(job).eos_token:
            ends = (encoder.close.strip() or job.eos_token,)  # a turn may be of several lines
        settings = GenerationSettings(
            max_new_tokens=self._new_tokens,
            eos_token=ends[0],
            other_ends=ends[1:],
            verbatim=self.task.harness is not None,
            sampling=job.sampling,
            temperature=job.temperature,
            num_beams=job.num_beams,
            top_k=job.top_k,
            top_p=job.top_p,
        )
        stops = [] if end is None else [end]
        if job.generator == "vllm":
            length, memory = loaded.max_length, job.generator_memory
            return VllmGenerator(loaded.model, loaded.tokenizer, settings, max_length=length, memory=memory, ends=stops)
        return Generator(
            loaded.model, loaded.tokenizer, settings, token_budget=job.token_budget, device=device, ends=stops
        )

    def objective(self, evaluator: Evaluator) -> Objective:
        """What training minimises."""
        if self.job.non_diff:
            likelihood = "teacher_forcing" if self.task.generation else "classification"
            guide = OBJECTIVES.get(likelihood)() if self.job.trainer == "guided" else None
            return RewardObjective(self._reward(), evaluator.generator, guide, completions=self.job.num_completions)
        if self.job.train_as_classification:
            return OBJECTIVES.get("classification")()
        return OBJECTIVES.get("teacher_forcing")(only_option=self.job.only_train_option)

    def _reward(self) -> Reward:
        job, output = self.job, self.arguments.output_dir
        cache = Path(output) / REWARDS_FILE if output else None
        judging = {"cache": cache, "timeout": job.reward_timeout, "retries": job.reward_retries}
        return find_reward(job.reward, self.task, **judging)

    def keep_states(
        self, loaded: LoadedModel, engine: ScoringEngine, rows: Sequence[Row], more: Sequence[Row]
    ) -> dict[str, Any]:
        """Have passes over these rows start behind the frozen blocks; facts of what that cost, for the result.

        more: rows of the evaluation alone, which must not change a bit of the training's.
        """
        job, arguments = self.job, self.arguments
        if job.trainer == "guided":  # what has no guide is refused before anything is computed
            if arguments.world_size > 1:
                raise ValueError("--trainer guided trains in one process: start one, or use --trainer zo")
            find_stream(loaded.model)
        if job.train_blocks is None or not rows:
            return {}
        first = chosen(job.train_blocks, len(find_blocks(loaded.model)))[0]
        if first == 0:
            return {}
        folder = Path(job.kept_states or Path(arguments.output_dir or ".") / "kept_states")
        started = time.perf_counter()
        quiet = arguments.disable_tqdm or arguments.process_index != 0 or None
        # One process of a machine computes, the others read.
        with (
            arguments.main_process_first(local=arguments.save_on_each_node),
            tqdm(desc="frozen blocks", unit=" rows", disable=quiet) as bar,
        ):
            engine.kept = keep(UpperBlocks(loaded.model, first, engine.device), rows, folder, bar.update, more=more)
        return {} if engine.kept is None else {"kept_states_seconds": round(time.perf_counter() - started, 2)}

    def propose(
        self,
        model: nn.Module,
        objective: Objective,
        engine: ScoringEngine,
        examples: Sequence[Example],
        *,
        names: Sequence[str],
        examples_per_step: int,
    ) -> Proposal:
        """Measure what the arguments `names` should be, on batches of these examples."""
        job, size = self.job, self.arguments.per_device_train_batch_size
        model.eval()
        probe = LossProbe(model, probe=job.zo_probe, noise=self.method()[0], seed=self.arguments.seed)
        closures = batch_closures(objective, engine, examples, size=size, seed=self.arguments.seed)
        batches_per_step = max(1, examples_per_step // size)
        return propose(probe, closures, names=names, batches_per_step=batches_per_step, samples=job.zo_samples)

    def method(self) -> tuple[Directions, Rule]:
        """Directions and rule, as given, else as --zo_method has them. Raises ValueError, in one line, for settings."""
        job, method = self.job, get_method(self.job.zo_method)
        names = ("rank", "refresh", "sparsity", "angle", "beta", "beta1", "beta2", "window")
        given = {name: getattr(job, f"zo_{name}") for name in names}
        directions = job.zo_directions or method.directions
        defaults = {**method.settings, "distribution": job.zo_distribution}
        try:
            return build(directions, job.zo_rule or method.rule, given, defaults)
        except ValueError as error:
            raise ValueError(f"--zo_method {job.zo_method}: {error}") from None

    def trainer(self, record: Mapping[str, Any], command: Sequence[str]) -> tuple[type[AnyTrainer], dict[str, Any]]:
        """The Trainer, and its arguments beside those that all have; `record` and `command` are the job for the log."""
        job = self.job
        if job.trainer == "zo":
            return ObjectiveMeZOTrainer, {**self.mezo_settings(record), "zo_cuda_graphs": job.zo_cuda_graphs}
        if job.trainer == "guided":
            return GuidedTrainer, {
                "rounding": job.zo_rounding,
                "max_skipped": job.zo_max_skipped,
                "coefficients": job.guide_coefficients,
                "noise": job.guide_noise,
                "run_facts": {"recipe": self.recipe().to_json(), "job": dict(record), "command": list(command)},
            }
        return ObjectiveTrainer, {}

    def mezo_settings(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """MeZO's arguments of the trainer; `record` is the job for the log."""
        job = self.job
        noise, rule = self.method()
        moved = job.tune_scales or job.generator == "vllm"  # what reads the weights themselves must find them moved
        return {
            "zo_eps": job.zo_eps,
            "zo_samples": job.zo_samples,
            "zo_shaping": job.zo_shaping,
            "zo_clip": job.zo_clip,
            "zo_max_skipped": job.zo_max_skipped,
            "zo_rounding": job.zo_rounding,
            "zo_probe": "copy" if moved and job.zo_probe == "auto" else job.zo_probe,
            "noise": noise,
            "zo_sides": job.zo_sides,
            "zo_split": job.zo_split,
            "zo_rule": rule,
            "zo_direction_groups": job.zo_direction_groups,
            "zo_check_steps": job.zo_check_steps,
            "model_placed": job.zo_offload != "none",
            "save_trajectory": job.save_trajectory,
            "run_facts": {"recipe": self.recipe().to_json(), "job": dict(record)},
            "reload_base": lambda: dict(self._load("cpu").model.named_parameters()),
        }


def training_arguments(parsed: Parsed, **overrides: Any) -> TrainingArguments:
    """The Trainer's arguments, with this process joined to the others of its launch; `overrides` as in Parsed.training.

    Processes that were started on a machine without an accelerator train on its CPUs, asked to or not: the Trainer
    would take each for the only one. Raises ValueError, in one line, where there are other processes than the launcher
    says, or more than devices.
    """
    launch, given = launcher.find(), parsed.training_kwargs
    if launch.size > 1:
        if given.get("use_cpu") or _on_cpu():
            overrides = {**overrides, "use_cpu": True}
            join_cpu_ranks(launch, given.get("ddp_timeout", TrainingArguments.ddp_timeout))
        elif launch.local_rank >= torch.accelerator.device_count():
            raise ValueError(
                f"{launch.by} has started process {launch.local_rank} (LOCAL_RANK, from 0) on a machine with "
                f"{torch.accelerator.device_count()} GPUs: start one for each, or give --use_cpu"
            )
    arguments = parsed.training(**overrides)
    if arguments.world_size != launch.size:
        raise ValueError(
            f"{launch.size} processes were started (by {launch.by or 'no launcher'}), and torch sees "
            f"{arguments.world_size}: start them with torchrun"
        )
    # Without a GPU there is nothing to pin memory for, and torch warns.
    arguments.dataloader_pin_memory = arguments.dataloader_pin_memory and arguments.device.type == "cuda"
    return arguments


def _on_cpu() -> bool:
    device = torch.accelerator.current_accelerator(check_available=True)
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")  # by accelerate launch --cpu
    return asked or device is None or device.type == "mps"  # which is one device for all


def check_reporters(names: Sequence[str]) -> None:
    """Raise ValueError for a --report_to that is unknown or whose package is missing, before anything is loaded."""
    for name in names:
        try:
            get_reporting_integration_callbacks([name])[0]()
        except (ValueError, RuntimeError, ImportError) as error:
            raise ValueError(f"argument --report_to: {name}: {' '.join(str(error).split())}") from error
