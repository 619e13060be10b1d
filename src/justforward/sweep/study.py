"""Settings are tried with one seed, the best of them with several; all is resumable.

Optuna proposes the settings and stops poor runs (MedianPruner). Its study is a journal file; the runs lie in folders
beside it that are named by their settings, so that a killed run goes on from its own log.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from justforward.sweep.options import SweepOptions
from justforward.sweep.runs import Stopped, run

logger = logging.getLogger(__name__)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ValueError("justforward sweep needs optuna: pip install 'justforward[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(options: SweepOptions) -> Any:
    """The study of the storage, new or continued."""
    optuna = _optuna()
    try:
        options.storage.parent.mkdir(parents=True, exist_ok=True)
        _check_storage(options.storage)
        backend = optuna.storages.journal.JournalFileBackend(str(options.storage))
        study = optuna.create_study(
            study_name="sweep",
            storage=optuna.storages.JournalStorage(backend),
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=3),
        )
    except OSError as error:
        raise ValueError(f"--storage {options.storage}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--storage {options.storage}: is no log of a sweep: give another --storage") from error
    for name, value in options.identity().items():
        if study.user_attrs.setdefault(name, value) != value:
            raise ValueError(
                f"--storage {options.storage}: holds a sweep with other {name} ({study.user_attrs[name]}): give "
                "another --storage, or the same command"
            )
        study.set_user_attr(name, value)
    # Seeded by how far the study is: a continued one must not propose what its beginning did.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials), n_startup_trials=min(5, options.trials))
    return study


def _check_storage(path: Path) -> None:
    """Raise ValueError for a file that is no log of a sweep; cut off what a kill left of a line being written."""
    if not path.is_file():
        return
    *lines, torn = path.read_bytes().split(b"\n")
    try:
        ours = all("op_code" in json.loads(line) for line in lines) and b'{"op_code":'.startswith(torn[:11])
    except (ValueError, TypeError):
        ours = False
    if not ours:
        raise ValueError(f"--storage {path}: is no log of a sweep: give another --storage")
    if torn:
        os.truncate(path, path.stat().st_size - len(torn))


def _grid(options: SweepOptions) -> list[float]:
    """Learning rates evenly spaced on the logarithmic scale, as many as the trials allow for each size of the probe."""
    low, high = options.lr
    count = max(1, options.trials // len(options.eps))
    if count == 1 or low == high:
        return [float(f"{math.sqrt(low * high):.2e}")]
    # Rounding must not lead out of the range.
    return [min(max(low * (high / low) ** (i / (count - 1)), low), high) for i in range(count)]


def search(study: Any, options: SweepOptions) -> None:
    """Make the trials that are missing, first those that were cut off."""
    states = _optuna().trial.TrialState
    for cut_off in study.get_trials(states=(states.RUNNING,)):
        study.tell(cut_off.number, state=states.FAIL)
        study.enqueue_trial(cut_off.params)
    left = options.trials - len(study.get_trials(states=(states.COMPLETE, states.PRUNED)))
    if options.sampler == "grid":
        points = [{"learning_rate": lr, "zo_eps": eps} for eps in options.eps for lr in _grid(options)]
        for point in points:
            study.enqueue_trial(point, skip_if_exists=True)
        left = len(study.get_trials(states=(states.WAITING,)))
        logger.info("the grid has %d settings, of which %d are to be tried", len(points), left)
    for _ in range(left):
        trial = study.ask()
        loss = _try(trial, options)
        if loss is None:
            study.tell(trial, state=states.PRUNED)
        else:
            study.tell(trial, loss)
        found = "stopped" if loss is None else f"development loss {loss:.4f}"
        logger.info("trial %d: %s: %s", trial.number, shlex.join(as_words(settings(trial))), found)


def _try(trial: Any, options: SweepOptions) -> float | None:
    """The development loss of a trial's settings with the first seed; None where they are poor or diverge."""
    trial.suggest_float("learning_rate", *options.lr, log=True)
    trial.suggest_categorical("zo_eps", options.eps)
    values = settings(trial)

    def poor(loss: float, step: int) -> bool:
        trial.report(loss, step)
        return trial.should_prune()

    try:
        loss = _evaluation(values, options.seeds[0], options, poor)["loss"]
    except Stopped:
        return None
    return loss if math.isfinite(loss) else None


def settings(trial: Any) -> dict[str, float]:
    """The values of a trial by argument, without digits that nobody could tell apart."""
    return {name: float(f"{value:.3g}") for name, value in trial.params.items()}


def finalists(study: Any, options: SweepOptions) -> list[dict[str, float]]:
    """The best settings with the first seed, each once."""
    complete = sorted((t for t in study.trials if t.state.name == "COMPLETE"), key=lambda t: t.value)
    different = {tuple(sorted(settings(t).items())): settings(t) for t in complete}
    return list(different.values())[: options.best]


def _evaluation(values: Mapping[str, float], seed: int, options: SweepOptions, report: Any) -> dict[str, Any]:
    folder = options.storage.with_suffix("") / f"{folder_name(values)}-seed-{seed}"
    found = run(options.base, values, seed, folder, report)
    if found.diverged:
        return {"loss": math.inf}
    return found.final(best=bool(options.base.training_kwargs.get("load_best_model_at_end")))


def folder_name(values: Mapping[str, float]) -> str:
    """Of a setting's runs."""
    return "-".join(f"{name}-{value!r}" for name, value in sorted(values.items()))


def all_seeds(values: Mapping[str, float], options: SweepOptions) -> dict[str, Any]:
    """Mean and spread over all seeds, for one setting."""
    found = [_evaluation(values, seed, options, lambda loss, step: False) for seed in options.seeds]
    row: dict[str, Any] = {"values": dict(values), "losses": [entry["loss"] for entry in found]}
    row |= {"loss": statistics.fmean(row["losses"]), "loss_spread": _spread(row["losses"])}
    if all("accuracy" in entry for entry in found):
        accuracies = [entry["accuracy"] for entry in found]
        row |= {"accuracy": statistics.fmean(accuracies), "accuracy_spread": _spread(accuracies)}
    return row


def _spread(values: list[float]) -> float:
    """Standard deviation; 0 for one value."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0


def as_words(values: Mapping[str, float]) -> list[str]:
    """A setting as arguments of a job."""
    return [word for name, value in sorted(values.items()) for word in (f"--{name}", f"{value!r}")]
