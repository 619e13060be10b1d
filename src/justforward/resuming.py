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
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from justforward.optim.ranks import Ranks, gathered
from justforward.optim.trajectory import FILE_NAME, read
from justforward.results import write_json
from justforward.trajectory_trainer import put_aside

logger = logging.getLogger(__name__)


class AlreadyTrained(Exception):
    """All steps were made before: the model is loaded, and there is nothing to train."""


class StopIfFinished(TrainerCallback):
    """Raises AlreadyTrained where a training continues behind its last step; the Trainer would make one more."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """See the class."""
        if state.global_step >= state.max_steps > 0:
            raise AlreadyTrained


RECORD = "justforward_job.json"
"""In the output folder: the arguments that its checkpoints depend on."""

# Own arguments that do not change the weights. The two on train sets do, and are recorded as the one set drawn.
_WITHOUT_EFFECT = (
    "save_trajectory",
    *("zo_direction_groups", "zo_check_steps"),
    *("num_eval", "num_train_sets", "train_set_seed", "sfc", "icl_sfc", "token_budget", "no_eval", "save_on_interrupt"),
    *("result_file", "tag", "save_model", "merge_lora", "verbose", "no_auto_device", "overwrite_output_dir"),
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


def share_log(folder: Path) -> None:
    """Give every machine the longest log that any has: for folders that ranks do not share.

    A machine that joins late, or has lost its disk, then goes on from where the others are.
    """
    files = [folder / name for name in (FILE_NAME, RECORD)]
    own = [path.read_bytes() if path.is_file() else b"" for path in files]
    sizes = gathered(len(own[0]))
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    shared = gathered(own if Ranks.current().rank == longest else None)[longest]
    if len(own[0]) < sizes[longest]:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(files, shared, strict=True):
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the output folder for this process: two that write to it would tear each other's log.

    The system lets go of the lock of a process that dies. Raises ValueError where another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
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
        os.close(handle)


def find_checkpoint(folder: Path, record: Mapping[str, Any], *, given: str | None, overwrite: bool) -> str | None:
    """The checkpoint to continue from, or None to start anew.

    Args:
        folder: the job's output folder.
        record: the job (see job_record).
        given: what the user asked for: a checkpoint's folder, "True" for the last one in `folder` whatever made it,
            "False" for none; None leaves it to the record.
        overwrite: delete the folder's checkpoints.

    Raises ValueError, in one line, for checkpoints of another job, and where there is none to continue.
    """
    log = folder / FILE_NAME
    if overwrite:
        for checkpoint in _checkpoints(folder):
            shutil.rmtree(checkpoint)
        log.unlink(missing_ok=True)
    if given is not None and given.lower() not in ("true", "false"):
        if not _is_complete(Path(given)):
            raise ValueError(f"--resume_from_checkpoint {given}: no such folder, or no complete checkpoint in it")
        return given
    found = [str(path) for path in _checkpoints(folder) if _is_complete(path)]
    last = found[-1] if found else None
    if log.is_file() and given is None and not found and _differing(folder, record):
        put_aside(log)
    if log.is_file() and len(read(log).steps) > (int(last.rsplit("-", 1)[1]) if last else 0):
        last = str(log)  # MeZO's log of every step, which a kill does not shorten
    if given is not None and given.lower() == "false":
        return None
    if given is not None and last is None:
        raise ValueError(f"--resume_from_checkpoint {given}: there is no complete checkpoint in {folder}")
    differing = [] if last is None else _differing(folder, record)
    # A log pins its job: other settings would not continue it.
    if differing and (given is None or last == str(log)):
        other = "" if last == str(log) else ", or --resume_from_checkpoint True to continue them all the same"
        raise ValueError(
            f"--output_dir {folder} holds checkpoints of another job (it differs in {', '.join(differing)}): give "
            f"another --output_dir, or --overwrite_output_dir to delete them{other}"
        )
    if last is not None and given is None:
        logger.info("continuing from %s (--overwrite_output_dir starts anew)", last)
    return last


def agreed(checkpoint: str | None, folder: Path) -> str | None:
    """What all ranks continue from, given what each has found; none goes on before all have looked.

    A log is continued by all or by none: from it they make the same exchanges, which a checkpoint that only some see
    (of a folder of their own, or made by a faster rank meanwhile) would not ask of them.
    """
    log = str(folder / FILE_NAME)
    return log if log in gathered(checkpoint) else checkpoint


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Say in the output folder whose checkpoints it will hold."""
    write_json(folder / RECORD, record)


def _differing(folder: Path, record: Mapping[str, Any]) -> list[str]:
    try:
        old = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"an unknown way, {RECORD} is missing"]
    return [name for name in {**old, **record} if old.get(name) != record.get(name)]


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints by their step, complete or not."""
    found = [p for p in folder.glob("checkpoint-*") if p.is_dir() and p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def _is_complete(checkpoint: Path) -> bool:
    """The Trainer writes its state last: without it, saving was cut short."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True
