"""Which checkpoint a training continues from.

The same command given again continues where it stopped. What a job is, is written into its output folder before it
trains, so that no job ever continues the checkpoint of another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from justforward import launcher
from justforward.optim.distribution.ranks import Ranks, gathered
from justforward.optim.log import FILE_NAME, LogError, read
from justforward.results.files import write_json
from justforward.training.checkpoints import MARK, checkpoints, damage, step_of
from justforward.training.output_folder import RECORD, clear
from justforward.training.trajectory_trainer import put_aside

logger = logging.getLogger(__name__)


class AlreadyTrained(Exception):
    """All steps were made before: the model is loaded, and there is nothing to train."""


class StopIfFinished(TrainerCallback):
    """Raises AlreadyTrained where a training continues behind its last step; the Trainer would make one more."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See the class."""
        if state.global_step >= state.max_steps > 0:
            raise AlreadyTrained


LAUNCH = "launch"
"""In the record, beside the arguments: torchrun's name for all starts and restarts of one command."""

# Own arguments that do not change the weights. The two on train sets do, and are recorded as the one set drawn.
_WITHOUT_EFFECT = (
    "save_trajectory",
    *("zo_direction_groups", "zo_check_steps"),
    *("num_eval", "num_train_sets", "train_set_seed", "sfc", "icl_sfc", "token_budget", "no_eval", "save_on_interrupt"),
    *("result_file", "tag", "save_model", "merge_lora", "verbose", "no_auto_device", "overwrite_output_dir"),
    "kept_states",
)
# The Trainer's arguments that do.
_WITH_EFFECT = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "world_size", "seed", "data_seed", "fp16", "bf16"),
    *("weight_decay", "max_grad_norm", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"),
)

_SHARED = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")


def job_record(own: Mapping[str, Any], arguments: TrainingArguments, *, train_set: int) -> dict[str, Any]:
    """What the weights after each step depend on, by argument, for JSON; train_set is the seed of the set.

    MeZO's depend on how many examples a step has, and not on how many ranks share them.
    """
    zo, groups = own["trainer"] == "zo", own["zo_direction_groups"]
    own = {name: value for name, value in own.items() if name not in _WITHOUT_EFFECT}
    trainers = {name: getattr(arguments, name) for name in _WITH_EFFECT}
    if zo:
        micro, accumulated, ranks = (trainers.pop(name) for name in _SHARED)
        split = bool(getattr(arguments.accelerator_config, "split_batches", False))
        own["examples_per_step"] = micro * accumulated * (1 if split else max(1, ranks // groups))
    # Enums and other rich values become what JSON would make of them.
    return json.loads(json.dumps({**own, "train_set": train_set, **trainers}, default=str))


def share_log(folder: Path, record: Mapping[str, Any]) -> None:
    """Give every machine the longest log that any has of this job: for folders that ranks do not share.

    A machine that joins late, or has lost its disk, then goes on from where the others are. Raises ValueError, on every
    rank, where a machine's folder holds checkpoints of another job.
    """
    files = [folder / RECORD, folder / FILE_NAME]  # the record first: a log without one would be another job's
    differing = _differing(folder, record)
    mistake = None
    try:
        if differing and last_whole(folder):
            mistake = _refusal(folder, differing)
    except LogError as error:
        mistake = str(error)
    if any(found := gathered(mistake)):
        raise ValueError(next(text for text in found if text))
    own = [path.read_bytes() if path.is_file() else b"" for path in files]
    size = 0 if differing else len(own[1])
    sizes = gathered(size)
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    shared = gathered(own if Ranks.current().rank == longest else None)[longest]
    if size < sizes[longest]:
        folder.mkdir(parents=True, exist_ok=True)
        if differing and own[1]:
            put_aside(files[1])
        for path, data in zip(files, shared, strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the output folder for this process: two that write to it would tear each other's log.

    The system lets go of the lock of a process that dies. A folder that it makes, and that stays empty since the job is
    refused, is gone after it. Raises ValueError where another process holds the folder.
    """
    fresh = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise ValueError(f"--output_dir {folder}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(
            f"--output_dir {folder}: another process trains there now: wait for it, or give another folder"
        ) from None
    except OSError:
        logger.info("%s lies on a file system without locks: see that no other job writes there", folder)
    try:
        yield
    finally:
        if fresh:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()
        os.close(handle)


def find_checkpoint(folder: Path, record: Mapping[str, Any], *, given: str | None, overwrite: bool) -> str | None:
    """The checkpoint to continue from, or None to start anew.

    Args:
        folder: the job's output folder.
        record: the job (see job_record).
        given: what the user asked for: a checkpoint's folder, "True" for the last one in `folder` whatever made it,
            "False" for none; None leaves it to the record.
        overwrite: delete what earlier trainings have left in the folder.

    Raises ValueError, in one line, for checkpoints of another job, and where there is none to continue.
    """
    log = folder / FILE_NAME
    if overwrite:
        clear(folder, base=str(record.get("model_name", "")))
    if given is not None and given.lower() not in ("true", "false") and (wrong := damage(Path(given))):
        raise ValueError(f"--resume_from_checkpoint {given}: {wrong if Path(given).is_dir() else 'no such folder'}")
    found, differing = last_whole(folder), _differing(folder, record)
    last = None if found is None else str(found)
    if given is not None and given.lower() != "true":
        path = None if given.lower() == "false" else Path(given)
        # They would count as this job's from here on.
        if found and differing and (path is None or path.parent.resolve() != folder.resolve()):
            raise ValueError(_refusal(folder, differing))
        return None if path is None else given
    if log.is_file() and given is None and not found and differing:
        put_aside(log)
    if log.is_file() and len(read(log).steps) > (0 if found is None else step_of(found) or 0):
        last = str(log)  # MeZO's log of every step, which a kill does not shorten
    if given is not None and last is None:
        raise ValueError(f"--resume_from_checkpoint {given}: there is no complete checkpoint in {folder}")
    # A log pins its job: other settings would not continue it.
    if last is not None and differing and (given is None or last == str(log)):
        other = "" if last == str(log) else ", or --resume_from_checkpoint True to continue them all the same"
        raise ValueError(_refusal(folder, differing) + other)
    if last is not None and given is None:
        logger.info("continuing from %s (--overwrite_output_dir starts anew)", last)
    return last


def agreed(look: Callable[[], str | None], folder: Path) -> str | None:
    """What all ranks continue from, given what each finds by `look`; none goes on before all have looked.

    A log is continued by all or by none: from it they make the same exchanges, which a checkpoint that only some see
    (of a folder of their own, or made by a faster rank meanwhile) would not ask of them. Raises ValueError, on every
    rank, for what `look` raises on any, and where they would continue different checkpoints.
    """
    own, mistake, log = None, None, folder / FILE_NAME
    try:
        own = look()
    except ValueError as error:
        mistake = str(error)
    paths, mistakes, logs = zip(*gathered((own, mistake, log.is_file())), strict=True)
    if any(mistakes):
        raise ValueError(next(text for text in mistakes if text))
    from_log = str(log) in paths
    if not all(logs) if from_log else len({path and Path(path).name for path in paths}) > 1:
        raise ValueError(
            f"--output_dir {folder}: not all machines have what is to be continued: give a folder that they share, or "
            "--save_on_each_node"
        )
    return str(log) if from_log else own


def relaunched(folder: Path) -> bool:
    """Whether torchrun has started this process again, or for more machines, in a launch that began in this folder."""
    launch = launcher.name()
    return bool(launch) and _recorded(folder).get(LAUNCH) == launch and (launcher.restarts() > 0 or launch != "none")


def goes_on(folder: Path) -> str:
    """What to do where a job stops for want of room on the disk, and what of it is kept."""
    again = "make room there and give the same command again"
    if next(folder.glob(f"**/{FILE_NAME}"), None) is not None:
        return f"{again}, which goes on from the run's log: no step is lost"
    if next(folder.glob("**/trainer_state.json"), None) is not None:
        return f"{again}, which goes on from the last whole checkpoint"
    return again


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Say in the output folder whose checkpoints it will hold."""
    write_json(folder / RECORD, {**record, LAUNCH: launcher.name()})


def _recorded(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _differing(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """The arguments in which the folder's job is another; a reason where it is unknown."""
    old = _recorded(folder)
    if not old:
        return [f"an unknown way, {RECORD} is missing"]
    return [name for name in {**old, **record} if name != LAUNCH and old.get(name) != record.get(name)]


def _refusal(folder: Path, differing: Sequence[str]) -> str:
    return (
        f"--output_dir {folder} holds checkpoints of another job (it differs in {', '.join(differing)}): give "
        "another --output_dir, or --overwrite_output_dir to delete them"
    )


def last_whole(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder; a line tells what is wrong with those behind it.

    A mark of a step that the log does not have is not whole. Raises LogError for a log that cannot be read.
    """
    log = folder / FILE_NAME
    steps = len(read(log).steps) if log.is_file() else 0
    for checkpoint in reversed(checkpoints(folder)):
        wrong = damage(checkpoint)
        if wrong is None and (checkpoint / MARK).exists() and (step_of(checkpoint) or 0) > steps:
            wrong = f"it is a mark in {FILE_NAME}, which has {steps} steps"
        if wrong is None:
            return checkpoint
        logger.warning("%s is passed over: %s", checkpoint, wrong)
    return None
