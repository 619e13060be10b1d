"""What trainings leave in an output folder, and what must go where another one takes it over.

Saved models are known by their files' names, so that those of the one are not loaded with those of the other.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from justforward.optim.log import FILE_NAME, GUIDED_FILE_NAME
from justforward.training.checkpoints import STATE, checkpoints
from justforward.training.judges import REWARDS_FILE

logger = logging.getLogger(__name__)

RECORD = "justforward_job.json"
"""In the output folder: the arguments that its checkpoints depend on."""

ADAPTER = ("adapter_config.json", "adapter_model*", "prefix_mlp.safetensors")
FULL = ("config.json", "generation_config.json", "model*.safetensors", "pytorch_model*.bin")
FULL += ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt")
TOKENIZER += ("spiece.model", "sentencepiece*", "*.tiktoken")
RUN = (
    STATE,
    FILE_NAME,
    GUIDED_FILE_NAME,
    "training_args.bin",
    "justforward_*.json",
    "all_results.json",
    "train_results.json",
    REWARDS_FILE,
)
CARDS = ("# A fine-tuned model as a trajectory log", "library_name: peft")
"""What tells a README.md that was written by a training."""


def clear(folder: Path, *, base: str) -> None:
    """Delete what trainings have left in a folder: checkpoints, log, and the model with its tokenizer.

    Other files, logs that were put aside, and folders in which nothing was trained stay as they are. Raises ValueError
    where the base model would be deleted.

    Args:
        folder: an output folder.
        base: name or folder of the model that is to be trained.
    """
    doomed = [part for part in (folder, *folder.glob("trainset*")) if _is_output(part)]
    if Path(base).expanduser().resolve() in [p.resolve() for part in doomed for p in (part, *checkpoints(part))]:
        raise ValueError(
            f"--overwrite_output_dir would delete --model_name {base} itself: give another --output_dir than {folder}"
        )
    for part in doomed:
        for checkpoint in checkpoints(part):
            shutil.rmtree(checkpoint)
        card = part / "README.md"
        if card.is_file() and any(words in card.read_text("utf-8", "replace") for words in CARDS):
            card.unlink(missing_ok=True)
        for path in _files(part, (*ADAPTER, *FULL, *TOKENIZER, *RUN)):
            path.unlink(missing_ok=True)


def make_room(folder: Path, *, adapter: bool, base: str) -> None:
    """Before a model is saved: delete the other kind of model that an earlier training has saved there.

    An adapter would be put on full weights beside it, and full weights would be taken for the model of an adapter.

    Args:
        folder: an output folder.
        adapter: the model to be saved is an adapter.
        base: name or folder of the model that was trained; full weights in its own folder stay.
    """
    if adapter and Path(base).expanduser().resolve() == folder.resolve():
        return
    if stale := list(_files(folder, FULL if adapter else ADAPTER)):
        kind, names = "model" if adapter else "adapter", ", ".join(path.name for path in stale)
        logger.warning("%s held the %s of another training, which is deleted: %s", folder, kind, names)
    for path in stale:
        path.unlink(missing_ok=True)


def _is_output(folder: Path) -> bool:
    return any((folder / name).exists() for name in (RECORD, STATE, FILE_NAME)) or bool(checkpoints(folder))


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return iter(sorted(found))
