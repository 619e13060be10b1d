"""The whole job: sample sets -> (train) -> evaluate -> results."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainingArguments

from justforward.arguments import JobArguments, Parsed
from justforward.evaluation import Evaluator, Outcome
from justforward.interrupts import InterruptedTraining, SaveOnInterrupt
from justforward.models.loading import LoadedModel
from justforward.models.recipe import ModelRecipe
from justforward.models.tuning import TuningSettings, choose, merge_lora
from justforward.objectives import OBJECTIVES, Objective
from justforward.optim import CounterNoise, DivergenceError
from justforward.probe import linear_probe
from justforward.progress import quiet_without_terminal, show_progress
from justforward.prompts import PromptEncoder
from justforward.provenance import run_facts
from justforward.replay import write_card
from justforward.results import result_name, write_json, write_jsonl
from justforward.resuming import AlreadyTrained, StopIfFinished, find_checkpoint, job_record, write_record
from justforward.rewards import RewardObjective, find_reward
from justforward.scoring import ScoringEngine
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.tasks import Sample, Splits, Task, get_task
from justforward.tasks.sampling import TrainSet, eval_indices, train_sets
from justforward.trainer import ObjectiveMeZOTrainer, ObjectiveTrainer, peak_memory_mib

logger = logging.getLogger(__name__)


def run(parsed: Parsed) -> None:
    """Run the job that the arguments describe. Raises ValueError, in one line, for what the user can mend."""
    _log_to_stderr()
    quiet_without_terminal()
    job = parsed.job
    task = get_task(job.task_name)
    splits = task.load(job.data_dir)
    arguments = _training(parsed)
    sets = train_sets(
        len(splits.train),
        num_train=job.num_train,
        num_dev=job.num_dev,
        num_train_sets=job.num_train_sets,
        train_set_seed=job.train_set_seed,
        num_eval_samples=min(job.num_eval or len(splits.validation), len(splits.validation)),
    )
    experiment = Experiment(parsed, task, splits, arguments)
    if job.train_set_seed is None and job.num_train_sets is None:
        experiment.one_set_per_sample(sets)
        return
    for i, train_set in enumerate(sets):
        folder = f"trainset{train_set.seed}" if len(sets) > 1 else None
        try:
            experiment.one_set(train_set, folder=folder, last=i + 1 == len(sets))
        except InterruptedTraining as stopped:
            logger.info("%s; the same command continues from there", stopped)
            return


@dataclass
class Experiment:
    """One job's fixed parts, and the model between its sets."""

    parsed: Parsed
    task: Task
    splits: Splits
    arguments: TrainingArguments
    loaded: LoadedModel | None = None

    @property
    def job(self) -> JobArguments:
        """The job's own arguments."""
        return self.parsed.job

    def one_set_per_sample(self, sets: Sequence[TrainSet]) -> None:
        """Zero-shot, or ICL with a demonstration set of its own for every evaluation sample."""
        path = self._result_path(None)
        samples = self._evaluation_samples(seed=0)
        demonstrations = [[self.splits.train[i] for i in s.train] for s in sets]
        evaluator = self._evaluator(self._model())
        started = time.perf_counter()
        outcomes = self._evaluate(evaluator, samples, demonstrations, "evaluation")
        self._write(path, evaluator, samples, outcomes, {"num_train": self.job.num_train}, started)

    def one_set(self, train_set: TrainSet, *, folder: str | None, last: bool) -> None:
        """ICL with one demonstration set, or training on one train set, and its evaluation."""
        job = self.job
        path = self._result_path(train_set.seed)
        train = [self.splits.train[i] for i in train_set.train]
        dev = [self.splits.train[i] for i in train_set.dev]
        samples = self._evaluation_samples(seed=train_set.seed)
        logger.info("%d training, %d development, %d evaluation samples", len(train), len(dev), len(samples))
        started = time.perf_counter()
        loaded = self._model()
        evaluator = self._evaluator(loaded)
        facts: dict[str, Any] = {"num_train": len(train), "num_dev": len(dev), "train_set_seed": train_set.seed}
        demonstrations: list[list[Sample]] | None = None
        if job.trainer == "none":
            demonstrations = [train] * len(samples)
        elif job.linear_probing:
            facts |= self._probe(loaded, evaluator, train, folder)
        else:
            facts |= self._train(loaded, evaluator, train, dev or samples, train_set.seed, folder)
        if not job.no_eval:
            outcomes = self._evaluate(evaluator, samples, demonstrations, "evaluation")
            if dev and job.trainer != "none":
                dev_outcomes = self._evaluate(evaluator, dev, None, "development set")
                facts |= {f"dev_{k}": v for k, v in evaluator.metrics(dev, dev_outcomes).items()}
            self._write(path, evaluator, samples, outcomes, facts, started)
        if job.trainer != "none" and not last:
            self.loaded = None  # every train set starts from the base model

    def _probe(
        self, loaded: LoadedModel, evaluator: Evaluator, train: list[Sample], folder: str | None
    ) -> dict[str, Any]:
        """Linear probing in place of training."""
        started = time.perf_counter()
        rows = [evaluator.encoder.gold(sample) for sample in train]
        probe = linear_probe(evaluator.engine, rows, early_stopping=self.job.lp_early_stopping)
        if self.job.save_model and self.arguments.process_index == 0:
            target = Path(self.arguments.output_dir or ".") / (folder or "")
            loaded.model.save_pretrained(target)
            loaded.tokenizer.save_pretrained(target)
        return {
            "train_accuracy": probe.accuracy,
            "penalty": probe.penalty,
            "train_seconds": round(time.perf_counter() - started, 2),
        }

    def _train(
        self,
        loaded: LoadedModel,
        evaluator: Evaluator,
        train: list[Sample],
        dev: list[Sample],
        train_set: int,
        folder: str | None,
    ) -> dict[str, Any]:
        objective = self._objective(evaluator)
        arguments = self.arguments
        if folder is not None:
            arguments = _training(self.parsed, output_dir=str(Path(arguments.output_dir or ".") / folder))
        record = job_record(asdict(self.job), arguments, train_set=train_set)
        checkpoint = self._checkpoint(arguments, record)
        kind, more = ObjectiveTrainer, {}
        if self.job.trainer == "zo":
            kind, more = ObjectiveMeZOTrainer, self._mezo_settings(record)
        trainer = kind(
            model=loaded.model,
            args=arguments,
            objective=objective,
            engine=evaluator.engine,
            train_dataset=[objective.encode(evaluator.encoder, s) for s in train],
            eval_dataset=[objective.encode(evaluator.encoder, s) for s in dev],
            processing_class=loaded.tokenizer,
            callbacks=[StopIfFinished(), *([SaveOnInterrupt()] if self.job.save_on_interrupt else [])],
            **more,
        )
        timer = show_progress(trainer)
        facts: dict[str, Any] = {}
        try:
            output = trainer.train(resume_from_checkpoint=checkpoint)
            facts = {"train_loss": output.training_loss, "train_seconds": round(output.metrics["train_runtime"], 2)}
            if timer.seconds_per_step is not None:
                facts["seconds_per_step"] = round(timer.seconds_per_step, 6)
        except AlreadyTrained:
            logger.info("all %d steps were made before: evaluating", trainer.state.global_step)
            if arguments.load_best_model_at_end and trainer.state.best_model_checkpoint:
                trainer._load_best_model()
        except DivergenceError as error:
            raise SystemExit(f"justforward: {error}") from error
        trainer.save_state()
        if self.job.merge_lora:
            # The evaluation that follows runs on the merged weights, which are what is saved.
            trainer.model = merge_lora(loaded.model)
        if self.job.save_model:
            trainer.save_model()
        if isinstance(trainer, ObjectiveMeZOTrainer) and trainer.log_path.exists() and arguments.process_index == 0:
            write_card(trainer.log_path.parent)
        facts = {"train_steps": trainer.state.global_step, **facts}
        if isinstance(trainer, ObjectiveMeZOTrainer) and trainer.mezo is not None:
            facts |= {"skipped_steps": trainer.mezo.skipped, "zero_steps": trainer.mezo.zero_steps}
        return facts

    def _checkpoint(self, arguments: TrainingArguments, record: Mapping[str, Any]) -> str | None:
        """What to continue from; from here on the output folder says that it is this job's."""
        folder = Path(arguments.output_dir or ".")
        with arguments.main_process_first():
            checkpoint = find_checkpoint(
                folder, record, given=arguments.resume_from_checkpoint, overwrite=self.job.overwrite_output_dir
            )
        if arguments.process_index == 0:
            write_record(folder, record)
        return checkpoint

    def _mezo_settings(self, record: Mapping[str, Any]) -> dict[str, Any]:
        job = self.job
        return {
            "zo_eps": job.zo_eps,
            "zo_samples": job.zo_samples,
            "zo_shaping": job.zo_shaping,
            "zo_max_skipped": job.zo_max_skipped,
            "zo_rounding": job.zo_rounding,
            "zo_probe": job.zo_probe,
            "noise": CounterNoise(job.zo_distribution),
            "save_trajectory": job.save_trajectory,
            "run_facts": {"recipe": self._recipe().to_json(), "job": dict(record)},
            "reload_base": lambda: dict(self._build().model.named_parameters()),
        }

    def _objective(self, evaluator: Evaluator) -> Objective:
        if self.job.non_diff:
            return RewardObjective(find_reward(self.job.reward, self.task), evaluator.generator)
        if self.job.train_as_classification:
            return OBJECTIVES.get("classification")()
        return OBJECTIVES.get("teacher_forcing")(only_option=self.job.only_train_option)

    def _model(self) -> LoadedModel:
        """The base model: loaded anew after a training, else kept."""
        if self.loaded is None:
            gc.collect()
            started = time.perf_counter()
            self.loaded = self._build()
            seconds = time.perf_counter() - started
            size = self.loaded.model.num_parameters() / 1e6
            logger.info("loaded %s: %.1f M parameters, %s, %.1f s", self.job.model_name, size, self.job.dtype, seconds)
        return self.loaded

    def _recipe(self) -> ModelRecipe:
        job = self.job
        return ModelRecipe(
            model_name=job.model_name,
            dtype=job.dtype,
            max_length=job.max_length,
            bos_token_id=job.bos_token_id,
            seed=self.arguments.seed,
            tuning=self._tuning() if job.is_training and not job.linear_probing else None,
        )

    def _build(self) -> LoadedModel:
        job = self.job
        return self._recipe().build(
            device=self.arguments.device,
            auto_device=not job.no_auto_device,
            trust_remote_code=job.trust_remote_code,
        )

    def _tuning(self) -> TuningSettings:
        job = self.job
        return TuningSettings(
            method=choose(lora=job.lora, prefix_tuning=job.prefix_tuning, head_tuning=job.head_tuning),
            untie=job.untie_emb,
            lora_r=job.lora_r,
            lora_alpha=job.lora_alpha,
            num_prefix=job.num_prefix,
            reparametrise=not job.no_reparam,
            prefix_from_activations=job.prefix_init_by_real_act,
        )

    def _evaluator(self, loaded: LoadedModel) -> Evaluator:
        job = self.job
        encoder = PromptEncoder(
            loaded.tokenizer,
            self.task,
            max_length=loaded.max_length,
            max_new_tokens=job.max_new_tokens,
            bos_token_id=loaded.bos_token_id,
        )
        settings = GenerationSettings(
            max_new_tokens=job.max_new_tokens,
            eos_token=job.eos_token,
            sampling=job.sampling,
            temperature=job.temperature,
            num_beams=job.num_beams,
            top_k=job.top_k,
            top_p=job.top_p,
        )
        generator = Generator(loaded.model, loaded.tokenizer, settings, token_budget=job.token_budget)
        return Evaluator(
            encoder,
            ScoringEngine(loaded.model, token_budget=job.token_budget),
            generator if self.task.generation else None,
            calibration="sfc" if job.sfc else "icl_sfc" if job.icl_sfc else None,
            verbose=job.verbose,
        )

    def _evaluation_samples(self, seed: int) -> list[Sample]:
        validation = self.splits.validation
        return [validation[i] for i in eval_indices(len(validation), self.job.num_eval, seed)]

    def _evaluate(
        self,
        evaluator: Evaluator,
        samples: list[Sample],
        demonstrations: list[list[Sample]] | None,
        what: str,
    ) -> list[Outcome]:
        # None: quiet where there is no terminal.
        quiet = self.arguments.disable_tqdm or self.arguments.process_index != 0 or None
        with tqdm(total=len(samples), desc=what, unit=" examples", disable=quiet) as bar:
            return evaluator.evaluate(samples, demonstrations, _advance(bar))

    def _result_path(self, train_set: int | None) -> Path:
        """Where the metrics go; its folder is made, and tried, before the work starts."""
        job = self.job
        name = result_name(
            task=job.task_name,
            model=job.model_name,
            sfc=job.sfc,
            icl_sfc=job.icl_sfc,
            num_eval=job.num_eval,
            num_train=job.num_train,
            num_dev=job.num_dev,
            tag=job.tag,
            train_set=train_set,
        )
        path = Path(job.result_file) if job.result_file else Path("result") / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            probe = path.parent / f".{path.name}.{os.getpid()}.probe"  # each of several processes tries
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(f"--result_file: cannot write to {path.parent}: {error.strerror}") from error
        return path

    def _write(
        self,
        path: Path,
        evaluator: Evaluator,
        samples: list[Sample],
        outcomes: list[Outcome],
        facts: dict[str, Any],
        started: float,
    ) -> None:
        if self.arguments.process_index != 0:  # every process has the same outcomes
            return
        metrics = evaluator.metrics(samples, outcomes)
        write_jsonl(path.with_name(f"{path.stem}-predictions.jsonl"), (o.to_json() for o in outcomes))
        seconds = round(time.perf_counter() - started, 2)
        told = run_facts(asdict(self.job), self.parsed.command_line(), self.arguments, facts.get("train_set_seed"))
        facts = {**facts, "num_eval": len(samples), "seconds": seconds, "peak_memory_mib": round(peak_memory_mib())}
        write_json(path, {**metrics, **facts, "run": told})
        logger.info("%s  -> %s", ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()), path)


def _advance(bar: tqdm) -> Callable[[int], None]:
    def advance(samples: int) -> None:
        bar.update(samples)

    return advance


def _training(parsed: Parsed, **overrides: Any) -> TrainingArguments:
    arguments = parsed.training(**overrides)
    # Without a GPU there is nothing to pin memory for, and torch warns.
    arguments.dataloader_pin_memory = arguments.dataloader_pin_memory and arguments.device.type == "cuda"
    return arguments


class _AboveProgressBars(logging.Handler):
    """Writes lines to stderr without breaking a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _log_to_stderr() -> None:
    package = logging.getLogger("justforward")
    if not package.handlers:
        package.addHandler(_AboveProgressBars())
        package.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.ERROR)
        package.propagate = False
