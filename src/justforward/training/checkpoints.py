"""A training's checkpoints: which there are, what loading one needs, and whether all of that is whole.

The Trainer writes a checkpoint file by file, in place, and its state last. Then a seal is put on it: every file that
loading needs, with its size and checksum. So a file that was cut, emptied or exchanged since is found, and named.
"""

from __future__ import annotations

import functools
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerState

from justforward.optim.log import MARK
from justforward.results.files import write_json

STATE = "trainer_state.json"
SEAL = "justforward_checkpoint.json"
"""In a checkpoint: {"files": {name: {"bytes": its size, "crc32": its checksum}}}."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*", "adapter_model.*")
_TO_GO_ON = ("optimizer*", "scheduler.pt", "rng_state*")
"""What a training needs besides weights, where it has steps left."""

_NEEDED = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.distcp", ".metadata", "*.index.json")
_NEEDED += ("config.json", "adapter_config.json", STATE, MARK)
_PIECE = 1 << 24


class _Damaged(Exception):
    """Says what is wrong, and of which file."""


def step_of(checkpoint: Path) -> int | None:
    """The step that a checkpoint's name tells, or None."""
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() and number != checkpoint.name else None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder by their step, whole or not."""
    found = [(step_of(path), path) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return [path for step, path in sorted(pair for pair in found if pair[0] is not None)]


def damage(checkpoint: Path, *, weights_only: bool = False) -> str | None:
    """What keeps a checkpoint from being used, in words that name the file; None where it is whole.

    A sealed one must hold what was saved, to the byte. Of others each file must be as long as it says itself, and none
    may be missing.

    Args:
        checkpoint: its folder.
        weights_only: the training is not to go on from there.
    """
    try:
        _check(checkpoint, weights_only=weights_only)
    except _Damaged as error:
        return str(error)
    except OSError as error:
        return f"{Path(error.filename or checkpoint).name} cannot be read ({error.strerror})"
    return None


def seal(checkpoint: Path) -> None:
    """Write down what a checkpoint that was just saved consists of."""
    files = {name: {"bytes": path.stat().st_size, "crc32": _crc32(path)} for name, path in _needed(checkpoint)}
    write_json(checkpoint / SEAL, {"files": files})


def read_mark(checkpoint: Path) -> dict[str, Any] | None:
    """What MARK holds, or None for a checkpoint with weights.

    {"step": its step, "from": a checkpoint with weights to start from, or null}.
    """
    path = checkpoint / MARK
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_mark(checkpoint: Path, step: int, start: Path | None) -> None:
    """Make a folder a checkpoint of this step, from weights beside it (None: from the base)."""
    checkpoint.mkdir(parents=True, exist_ok=True)
    write_json(checkpoint / MARK, {"step": step, "from": None if start is None else start.name})


def best_of(checkpoint: Path) -> str | None:
    """The name of the best checkpoint up to this one; the path that stands with it is where the run lay then."""
    path = _json(checkpoint, STATE).get("best_model_checkpoint")
    return Path(path).name if path else None


def _check(checkpoint: Path, *, weights_only: bool) -> None:
    if not checkpoint.is_dir():
        raise _Damaged("it is not there")
    state = _state(checkpoint)
    files = [(name, path) for name, path in _needed(checkpoint) if not (weights_only and _is_one_of(name, _TO_GO_ON))]
    if (checkpoint / SEAL).exists():
        _check_seal(checkpoint, {name for name, _ in files}, weights_only=weights_only)
    else:
        for name, path in files:
            _check_form(checkpoint, name, path)
    if (checkpoint / MARK).exists():
        mark = _json(checkpoint, MARK)
        if mark.get("step") != state.global_step or not isinstance(mark.get("from", 0), str | None):
            raise _Damaged(f"{MARK} is not that of step {state.global_step}")
        return
    if not any(_is_one_of(name, _WEIGHTS) for name, _ in files):
        raise _Damaged("it holds no weights")
    if not weights_only and state.global_step < state.max_steps:
        for kind in _TO_GO_ON:
            if not any(_is_one_of(name, (kind,)) for name, _ in files):
                raise _Damaged(f"it holds no {kind.rstrip('*')}, which training on needs")


def _state(checkpoint: Path) -> TrainerState:
    value = _json(checkpoint, STATE)
    try:
        state = TrainerState(**value)
    except (TypeError, AttributeError, ValueError) as error:
        raise _Damaged(f"{STATE} is damaged, or of another version of transformers ({error})") from error
    numbers = (state.global_step, state.max_steps, state.train_batch_size)
    if not all(type(number) is int for number in numbers) or not isinstance(state.stateful_callbacks, dict):
        raise _Damaged(f"{STATE} is damaged: it lacks what a training's state has")
    if step_of(checkpoint) not in (None, state.global_step):
        raise _Damaged(f"{STATE} is that of step {state.global_step}")
    return state


def _needed(checkpoint: Path) -> Iterator[tuple[str, Path]]:
    """The files that loading reads, with their names in the checkpoint."""
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and _is_one_of(path.name, _NEEDED) and path.name != "training_args.bin":
            yield path.relative_to(checkpoint).as_posix(), path


def _is_one_of(name: str, patterns: tuple[str, ...]) -> bool:
    return any(Path(name.split("/")[0]).match(pattern) or Path(name).match(pattern) for pattern in patterns)


def _check_seal(checkpoint: Path, there: set[str], *, weights_only: bool) -> None:
    files = _json(checkpoint, SEAL).get("files")
    if not isinstance(files, dict) or not all(isinstance(told, dict) for told in files.values()):
        raise _Damaged(f"{SEAL} is damaged")
    for name, told in files.items():
        if weights_only and _is_one_of(name, _TO_GO_ON):
            continue
        path, size = checkpoint / name, told.get("bytes")
        if name not in there:
            raise _Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise _Damaged(f"{name} has {path.stat().st_size:,} bytes, and {size:,} were saved")
        if _crc32(path) != told.get("crc32"):
            raise _Damaged(f"{name} is not what was saved (its checksum differs)")


def _crc32(path: Path) -> str:
    """A file's checksum; read once for as long as it stays as it is."""
    stat = path.stat()
    return _crc32_of(path.resolve(), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@functools.lru_cache(maxsize=256)
def _crc32_of(path: Path, *_: int) -> str:
    crc = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
    return f"{crc:08x}"


def _check_form(checkpoint: Path, name: str, path: Path) -> None:
    if name.endswith(".json"):
        shards = _json(checkpoint, name).get("weight_map") if name.endswith(".index.json") else None
        for shard in sorted(set(shards.values())) if isinstance(shards, dict) else []:
            if not (path.parent / str(shard)).is_file():
                raise _Damaged(f"{shard} is missing")
    elif name.endswith(".safetensors"):
        size, said = path.stat().st_size, _safetensors_size(path)
        if size != said:
            raise _Damaged(f"{name} has {size:,} bytes" + (f" of {said:,}" if said else ", and no header"))
    elif name.endswith((".pt", ".pth", ".bin")):
        try:
            zipfile.ZipFile(path).close()
        except zipfile.BadZipFile as error:
            raise _Damaged(f"{name} is cut short or damaged") from error
    elif path.stat().st_size == 0:
        raise _Damaged(f"{name} is empty")


def _safetensors_size(path: Path) -> int:
    """The size that a safetensors file's header tells; 0 where it has none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, path.stat().st_size)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return 0


def _json(checkpoint: Path, name: str) -> dict[str, Any]:
    """A JSON file's object."""
    try:
        value = json.loads((checkpoint / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _Damaged(f"{name} is missing") from None
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"{name} is cut short or damaged") from error
    if not isinstance(value, dict):
        raise _Damaged(f"{name} is damaged: it holds no object")
    return value
