"""The whole job: sample sets -> (train) -> evaluate -> results."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftModel
from tqdm import tqdm
from transformers import TrainerCallback, TrainingArguments

from justforward import launcher
from justforward.assembly import Assembly, check_reporters, sets_of, task_of, training_arguments
from justforward.auto.settle import FILE_NAME as AUTO_FILE
from justforward.auto.settle import settle
from justforward.command_line.arguments import Parsed
from justforward.command_line.job import JobArguments
from justforward.models.loading import LoadedModel
from justforward.models.saving import save
from justforward.models.tuning import merge_lora
from justforward.optim import DivergenceError
from justforward.optim.distribution.ranks import RankError, Ranks, gathered, ranks_answer
from justforward.optim.distribution.shards import is_sharded
from justforward.results.files import result_name, try_to_write, write_json, write_jsonl, writing
from justforward.results.places import place, predictions
from justforward.results.provenance import run_facts
from justforward.scoring import ScoringEngine
from justforward.scoring.evaluation import Evaluator, Outcome
from justforward.scoring.remarks import cut_facts
from justforward.tasks import Sample, Splits, Task
from justforward.tasks.from_file import pinned
from justforward.tasks.sampling import TrainSet, eval_indices
from justforward.training.failures import refuse_failed
from justforward.training.interrupts import InterruptedTraining, SaveOnInterrupt
from justforward.training.linear_probe import linear_probe
from justforward.training.objective_trainer import ObjectiveMeZOTrainer
from justforward.training.objectives import Example, Objective
from justforward.training.output_folder import make_room
from justforward.training.progress import log_to_stderr, show_progress
from justforward.training.resuming import (
    AlreadyTrained,
    StopIfFinished,
    agreed,
    claimed,
    find_checkpoint,
    goes_on,
    job_record,
    relaunched,
    share_log,
    write_record,
)
from justforward.training.trainer import peak_memory_mib
from justforward.trajectory.replay import write_card

logger = logging.getLogger(__name__)


def run(parsed: Parsed, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Run the job that the arguments describe. Raises ValueError, in one line, for what the user can mend.

    callbacks: for the Trainer, where the job trains.
    """
    log_to_stderr(launcher.settle().rank)
    folder = Path(parsed.training_kwargs.get("output_dir") or "result")
    try:
        with ranks_answer(), writing(folder, lambda: goes_on(folder)):
            _run(parsed, callbacks)
    except (DivergenceError, RankError) as error:
        raise SystemExit(f"justforward: error: {error}") from error


def _run(parsed: Parsed, callbacks: Sequence[TrainerCallback]) -> None:
    job = parsed.job
    task = task_of(job)
    splits = task.load(job.data_dir)
    arguments = training_arguments(parsed)
    trains = job.trainer != "none"
    if trains and arguments.process_index == 0:
        check_reporters(list(arguments.report_to or []))
    sets = sets_of(job, splits)
    experiment = Experiment(parsed, task, splits, arguments, callbacks=callbacks)
    if job.trainer == "zo":
        experiment.parts.method()  # what is wrong with its settings is said before a model is loaded
    if job.train_set_seed is None and job.num_train_sets is None:
        experiment.one_set_per_sample(sets)
        return
    with claimed(Path(arguments.output_dir or ".")) if trains and arguments.should_save else nullcontext():
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
    settled: Mapping[str, Any] | None = None
    """What was measured in place of arguments that are "auto"."""
    callbacks: Sequence[TrainerCallback] = ()

    @property
    def parts(self) -> Assembly:
        """What makes the parts of the job."""
        return Assembly(self.job, self.arguments, self.task)

    @property
    def job(self) -> JobArguments:
        """The job's own arguments."""
        return self.parsed.job

    def one_set_per_sample(self, sets: Sequence[TrainSet]) -> None:
        """Zero-shot, or ICL with a demonstration set of its own for every evaluation sample."""
        path = self._result_path(None)
        samples = self._evaluation_samples(seed=0)
        demonstrations = [[self.splits.train[i] for i in s.train] for s in sets]
        evaluator = self.parts.evaluator(self._model())
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
        evaluator = self.parts.evaluator(loaded)
        facts: dict[str, Any] = {"num_train": len(train), "num_dev": len(dev), "train_set_seed": train_set.seed}
        demonstrations: list[list[Sample]] | None = None
        if job.trainer == "none":
            demonstrations = [train] * len(samples)
        elif job.linear_probing:
            facts |= self._probe(loaded, evaluator, train, folder)
        else:
            facts |= self._train(loaded, evaluator, (train, dev or samples, samples), train_set.seed, folder)
        if not job.no_eval:
            outcomes = self._evaluate(evaluator, samples, demonstrations, "evaluation")
            if dev and job.trainer != "none":
                dev_outcomes = self._evaluate(evaluator, dev, None, "development set")
                facts |= {f"dev_{k}": v for k, v in evaluator.metrics(dev, dev_outcomes).items()}
                facts |= cut_facts([o.cut for o in dev_outcomes], "dev_")
            self._write(path, evaluator, samples, outcomes, facts, started)
        if job.trainer != "none" and not last:
            self.loaded = None  # every train set starts from the base model

    def _probe(
        self, loaded: LoadedModel, evaluator: Evaluator, train: list[Sample], folder: str | None
    ) -> dict[str, Any]:
        """Linear probing in place of training."""
        started = time.perf_counter()
        with evaluator.encoder.noting("training rows") as remarks:
            rows = [evaluator.encoder.gold(sample) for sample in train]
        probe = linear_probe(evaluator.engine, rows, early_stopping=self.job.lp_early_stopping)
        if self.job.save_model and self.arguments.process_index == 0:
            target = Path(self.arguments.output_dir or ".") / (folder or "")
            make_room(target, adapter=False, base=self.job.model_name)
            save(loaded, target)
        return {
            "train_accuracy": probe.accuracy,
            "penalty": probe.penalty,
            "train_seconds": round(time.perf_counter() - started, 2),
            **cut_facts(map(remarks.tokens_lost, train), "train_"),
        }

    def _train(
        self,
        loaded: LoadedModel,
        evaluator: Evaluator,
        drawn: tuple[list[Sample], list[Sample], list[Sample]],
        train_set: int,
        folder: str | None,
    ) -> dict[str, Any]:
        train, dev, evaluated = drawn
        objective = self.parts.objective(evaluator)
        held_out = "development" if self.job.num_dev else "evaluation"
        with evaluator.encoder.noting(f"training and {held_out} rows") as remarks:
            datasets = [[objective.encode(evaluator.encoder, s) for s in samples] for samples in (train, dev)]
        watched = datasets if self.job.num_dev else datasets[:1]  # what is looked at while training
        rows = [row for examples in watched for example in examples for row in example.rows]
        scored = self.job.train_blocks is not None and not (self.job.no_eval or self.task.generation)
        more = [row for sample in evaluated * scored for row in evaluator.encoder.scored(sample)]
        kept = self.parts.keep_states(loaded, evaluator.engine, rows, more)
        settled = self
        if self.parsed.auto:
            settled = self._settled(loaded, objective, evaluator.engine, datasets[0], train_set, folder)
        facts = settled._fit(loaded, objective, evaluator.engine, datasets, train_set, folder)
        return {**facts, **kept, **cut_facts(map(remarks.tokens_lost, train), "train_")}

    def _fit(
        self,
        loaded: LoadedModel,
        objective: Objective,
        engine: ScoringEngine,
        datasets: Sequence[list[Example]],
        train_set: int,
        folder: str | None,
    ) -> dict[str, Any]:
        arguments = self.arguments
        if folder is not None:
            arguments = training_arguments(self.parsed, output_dir=str(Path(arguments.output_dir or ".") / folder))
        record = job_record(pinned(self.job.record(), self.task, self.splits), arguments, train_set=train_set)
        checkpoint = self._checkpoint(arguments, record)
        kind, more = self.parts.trainer(record, self.parsed.command_line())
        trainer = kind(
            model=loaded.model,
            args=arguments,
            objective=objective,
            engine=engine,
            train_dataset=datasets[0],
            eval_dataset=datasets[1],
            processing_class=loaded.tokenizer,
            callbacks=[StopIfFinished(), *([SaveOnInterrupt()] if self.job.save_on_interrupt else []), *self.callbacks],
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
        trainer.save_state()
        refuse_failed(trainer)
        if self.job.merge_lora:
            # The evaluation that follows runs on the merged weights, which are what is saved.
            trainer.model = merge_lora(loaded.model)
        if self.job.save_model:
            if arguments.should_save:
                adapter = isinstance(trainer.model, PeftModel)
                make_room(Path(arguments.output_dir or "."), adapter=adapter, base=self.job.model_name)
            trainer.save_model()
        if isinstance(trainer, ObjectiveMeZOTrainer) and trainer.log_path.exists() and arguments.process_index == 0:
            write_card(trainer.log_path.parent)
        facts = {"train_steps": trainer.state.global_step, **trainer.counted(), **facts}
        if self.settled is not None:
            facts |= {**self.settled["values"], "auto": self.settled["reasons"]}
        return {**facts, **trainer.skipped_facts()}

    def _settled(
        self,
        loaded: LoadedModel,
        objective: Objective,
        engine: ScoringEngine,
        examples: list[Example],
        train_set: int,
        folder: str | None,
    ) -> Experiment:
        """The experiment with numbers in place of "auto"."""
        arguments = self.arguments
        place = Path(arguments.output_dir or ".") / (folder or "")
        record = job_record(pinned(self.job.record(), self.task, self.splits), arguments, train_set=train_set)
        settled = settle(
            place,
            record,
            self.parsed.auto,
            lambda: self.parts.propose(
                loaded.model,
                objective,
                engine,
                examples,
                names=self.parsed.auto,
                examples_per_step=record["examples_per_step"],
            ),
            anew=self.job.overwrite_output_dir and not relaunched(place),
        )
        parsed = self.parsed.with_values(settled["values"])
        return replace(self, parsed=parsed, arguments=training_arguments(parsed), settled=settled)

    def _checkpoint(self, arguments: TrainingArguments, record: Mapping[str, Any]) -> str | None:
        """What to continue from; from here on the output folder says that it is this job's."""
        folder, given = Path(arguments.output_dir or "."), arguments.resume_from_checkpoint
        again = any(gathered(relaunched(folder)))  # what was asked for is done once
        overwrite = self.job.overwrite_output_dir and not again
        given = None if again and str(given).lower() == "false" else given
        if arguments.save_on_each_node and not overwrite:
            share_log(folder, record)

        def look() -> str | None:
            with arguments.main_process_first(local=arguments.save_on_each_node):
                return find_checkpoint(folder, record, given=given, overwrite=overwrite)

        checkpoint = agreed(look, folder)
        if arguments.should_save:
            write_record(folder, record)
            if self.settled is not None:
                write_json(folder / AUTO_FILE, self.settled)
        return checkpoint

    def _model(self) -> LoadedModel:
        """The base model: loaded anew after a training, else kept."""
        if self.loaded is None:
            gc.collect()
            started = time.perf_counter()
            self.loaded = self.parts.build()
            seconds = time.perf_counter() - started
            size = self.loaded.model.num_parameters() / 1e6
            logger.info("loaded %s: %.1f M parameters, %s, %.1f s", self.job.model_name, size, self.job.dtype, seconds)
        return self.loaded

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
        """The outcomes of all samples, on every rank; each has evaluated its share, or all of a model they share."""
        ranks = Ranks() if is_sharded(evaluator.engine.model) else Ranks.current()
        own = range(ranks.rank, len(samples), ranks.size)
        shots = None if demonstrations is None else [demonstrations[i] for i in own]
        # None: quiet where there is no terminal.
        quiet = self.arguments.disable_tqdm or self.arguments.process_index != 0 or None
        with tqdm(total=len(own), desc=what, unit=" examples", disable=quiet) as bar:
            outcomes = evaluator.evaluate([samples[i] for i in own], shots, _advance(bar))
        if ranks.size == 1:
            return outcomes
        parts = gathered(outcomes)
        return [parts[i % ranks.size][i // ranks.size] for i in range(len(samples))]

    def _result_path(self, train_set: int | None) -> Path:
        """Where the metrics are to go; its folder is made, and tried, before the work starts."""
        job = self.job
        if job.result_file:
            path = Path(job.result_file)
            if (job.num_train_sets or 1) > 1:
                path = path.with_name(f"{path.stem}-trainset{train_set}{path.suffix}")
        else:
            names = ("sfc", "icl_sfc", "num_eval", "num_train", "num_dev", "tag")
            told = {name: getattr(job, name) for name in names}
            task = job.task_name if self.task.harness is None else self.task.name
            path = "result" / Path(result_name(task=task, model=job.model_name, train_set=train_set, **told))
        try_to_write(path)
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
        seconds = round(time.perf_counter() - started, 2)
        told = run_facts(self.job.record(), self.parsed.command_line(), self.arguments, facts.get("train_set_seed"))
        facts = {
            **facts,
            **cut_facts([o.cut for o in outcomes]),
            "num_eval": len(samples),
            "seconds": seconds,
            "peak_memory_mib": round(peak_memory_mib()),
        }
        path = place(path, told["command"], named=self.job.result_file is not None)
        write_jsonl(predictions(path), (o.to_json() for o in outcomes))
        write_json(path, {**metrics, **facts, "run": told})
        logger.info("%s  -> %s", ", ".join(f"{k} {v:.4f}" for k, v in metrics.items()), path)


def _advance(bar: tqdm) -> Callable[[int], None]:
    def advance(samples: int) -> None:
        bar.update(samples)

    return advance
