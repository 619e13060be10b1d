"""What a model's frozen lower blocks give for rows, computed once and kept; passes then start at the first block above.

    engine.kept = keep(UpperBlocks(model, first), rows, folder)

Rows are computed in batches of one length, cut from the sorted rows in one way: computed anew they are the same to the
bit, whatever batches a training makes of them. They lie in a mapped file, [tokens, width] in the model's dtype, named
by a digest of all that they are a function of; what of it is in memory is the system's to decide.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from justforward.models.blocks import find_blocks
from justforward.models.fingerprint import fingerprint_of
from justforward.results.files import writing
from justforward.scoring.plan import Forward, Piece
from justforward.scoring.positions import sent
from justforward.scoring.prompts import Row

logger = logging.getLogger(__name__)

BATCH_TOKENS = 2048
"""Most tokens of a pass that computes hidden states; a part of what the file's name stands for."""

_BITS = {2: np.int16, 4: np.int32}
"""What numpy, which has no bfloat16, takes for a dtype of so many bytes."""


CHECKED_ROWS = 1 << 14
"""Rows of a file that are read at a time to find its checksum."""

_CHECKSUM = struct.Struct("<I")


class _Reached(Exception):
    """The first block above has been reached: a pass need not go on."""


class UpperBlocks:
    """A causal LM that can be run from its block number `first` on. Raises ValueError where its blocks are not found.

    model: possibly wrapped by PEFT; what is below that block must not change. device: where it computes; None for
    where its weights are.
    """

    def __init__(self, model: Any, first: int, device: torch.device | None = None):
        self.model, self.first = model, first
        self.device = device or next(model.parameters()).device
        self.blocks = find_blocks(model)
        self.below = list(self.blocks.modules)[:first]
        self._others = 0
        """How many values a block gives besides the hidden states; -1 where it gives these alone, and in no tuple."""

    @torch.no_grad()
    def hidden(self, fed: Sequence[Sequence[int]]) -> Tensor:
        """[B, N, width] hidden states at which the first block above starts, for rows of N tokens each."""
        found: list[Tensor] = []

        def stop(block: nn.Module, given: Any, output: Any) -> None:
            self._others = len(output) - 1 if isinstance(output, tuple) else -1
            found.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        training = self.model.training
        self.model.eval()
        hook = self.below[-1].register_forward_hook(stop)
        try:
            self._base()(input_ids=torch.tensor(fed, device=self.device), use_cache=False)
        except _Reached:
            pass
        finally:
            hook.remove()
            self.model.train(training)
        (states,) = found
        return states

    @contextmanager
    def starting(self, states: Tensor) -> Iterator[None]:
        """Passes start from these hidden states, [B, N, width], for a while."""

        def skip(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return self._given(hidden_states)

        def start(*_: Any, **__: Any) -> Any:
            return self._given(states)

        # Not by hooks: a checkpointed block is called again with what it was given, when hooks are long gone.
        own = [(block, vars(block).get("forward")) for block in self.below]
        try:
            for block in self.below:
                vars(block)["forward"] = start if block is self.below[-1] else skip
            yield
        finally:
            for block, forward in own:
                if forward is None:
                    del vars(block)["forward"]
                else:
                    vars(block)["forward"] = forward

    def fault(self, fed: Sequence[int]) -> str | None:
        """Why passes cannot start at this block, or None: on this row they must give the same logits to the bit."""
        ids = torch.tensor([fed], device=self.device)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                whole = self._base()(input_ids=ids, use_cache=False).logits
                with self.starting(self.hidden([fed])):
                    upper = self._base()(input_ids=ids, use_cache=False).logits
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            if should_reduce_batch_size(error):
                raise
            return f"{type(error).__name__}: {error}".splitlines()[0]
        finally:
            self.model.train(training)
        return None if torch.equal(whole, upper) else f"logits differ by {(whole - upper).abs().max():.3g}"

    def digest(self) -> str:
        """Of what the hidden states are a function of besides tokens."""
        text_config = self.model.config.get_text_config()
        told = {**text_config.to_dict(), "attention": getattr(text_config, "_attn_implementation", None)}
        for name in ("_name_or_path", "transformers_version", "architectures", "use_cache"):
            told.pop(name, None)
        facts = json.dumps(
            [told, self.first, torch.__version__, self.device.type, BATCH_TOKENS], default=str, sort_keys=True
        )
        weights = fingerprint_of(sorted(self._weights_below(), key=lambda pair: pair[0]))
        return hashlib.blake2b(f"{facts} {weights}".encode(), digest_size=16).hexdigest()

    def _weights_below(self) -> Iterator[tuple[str, Tensor]]:
        """All but those of the blocks above, under the names that they have without adapters."""
        whole = self._base()
        prefix = next((name for name, m in self.model.named_modules() if m is whole), "")
        for name, p in self.model.named_parameters():
            number = self.blocks.number(name)
            if number is None or number < self.first:
                yield name.removeprefix(f"{prefix}." if prefix else ""), p

    def _given(self, states: Tensor) -> Any:
        return states if self._others < 0 else (states, *[None] * self._others)

    def _base(self) -> Any:
        return getattr(self.model, "get_base_model", lambda: self.model)()


class KeptStates:
    """Hidden states of rows, from which passes over these rows start.

    Args:
        upper: the model.
        fed: the tokens that are fed of every row that is known.
        states: [tokens, width] of all of them, one after the other, as integers of the bits of `dtype`.
        dtype: of the hidden states.
    """

    def __init__(self, upper: UpperBlocks, fed: Sequence[tuple[int, ...]], states: np.ndarray, dtype: torch.dtype):
        self.upper, self._states, self._dtype = upper, states, dtype
        ends = np.cumsum([len(tokens) for tokens in fed]).tolist()
        self._places = {_key(tokens): (end - len(tokens), end) for tokens, end in zip(fed, ends, strict=True)}
        self._last: tuple[Forward, Tensor] | None = None

    def hold(self, rows: Iterable[Row]) -> bool:
        """Whether all of these rows are known."""
        return all(_key(row.tokens[:-1]) in self._places for row in rows)

    def of(self, forward: Forward, device: torch.device) -> Tensor | None:
        """[B, N, width] hidden states of a pass's sequences, 0 where they are padded; None where one is not known."""
        if self._last is None or self._last[0] is not forward:
            keys = {_key(piece.fed) for pieces in forward.pieces for piece in pieces}
            if not keys <= self._places.keys():
                return None
            states = np.zeros((*forward.input_ids.shape, self._states.shape[1]), dtype=self._states.dtype)
            for place, pieces in enumerate(forward.pieces):
                row = np.concatenate([self._row(piece) for piece in pieces])
                states[place, : len(row)] = row
            self._last = forward, sent(torch.from_numpy(states).view(self._dtype), device)
        return self._last[1]

    def _row(self, piece: Piece) -> np.ndarray:
        first, last = self._places[_key(piece.fed)]
        return self._states[first + piece.start : last]


def keep(
    upper: UpperBlocks,
    rows: Iterable[Row],
    folder: Path,
    progress: Callable[[int], object] = lambda _: None,
    *,
    more: Iterable[Row] = (),
) -> KeptStates | None:
    """Hidden states of rows, in a file of this folder, which may be there already; `progress` is told of rows computed.

    more: rows that share no batch with the others, on whose bits they have no effect.

    Returns None, after a warning, for a model that cannot be started at that block. Raises ValueError, in one line,
    where the folder has no room.
    """
    first = {row.tokens[:-1] for row in rows}
    parts = [_ordered(part) for part in (first, {row.tokens[:-1] for row in more} - first)]
    fed = [tokens for part in parts for tokens in part]
    if (fault := upper.fault(max(fed, key=len))) is not None:
        logger.warning("passes cannot start at block %d, and are made whole: %s", upper.first, fault)
        return None
    sample = upper.hidden(fed[:1])
    shape, bits = (sum(map(len, fed)), sample.shape[-1]), _BITS[sample.element_size()]
    path = folder / f"{_file_name(upper, parts)}.npy"
    states = _read(path, shape, np.dtype(bits))
    if states is not None:
        logger.info("what the blocks below %d give for %d rows is in %s", upper.first, len(fed), path)
    else:
        _check_room(upper, len(fed), shape[0] * shape[1] * sample.element_size(), folder)
        with writing(folder, lambda: "give --kept_states a folder with more room"):
            _write(path, np.dtype(bits), shape, (s for part in parts for s in _computed(upper, part, bits, progress)))
        states = np.load(path, mmap_mode="r")
    return KeptStates(upper, fed, states, sample.dtype)


def _read(path: Path, shape: tuple[int, int], dtype: np.dtype) -> np.ndarray | None:
    """A file's array; None where there is none, or where it was cut or changed since it was written."""
    if not path.exists():
        return None
    try:
        states = np.load(path, mmap_mode="r")
        if states.shape != shape or states.dtype != dtype:
            raise ValueError(f"it holds {states.shape}, {states.dtype}")
        with path.open("rb") as file:
            file.seek(-_CHECKSUM.size, os.SEEK_END)
            (written,) = _CHECKSUM.unpack(file.read())
        pieces = (states[i : i + CHECKED_ROWS] for i in range(0, len(states), CHECKED_ROWS))
        if functools.reduce(lambda crc, piece: zlib.crc32(piece.data, crc), pieces, 0) != written:
            raise ValueError("its checksum differs")
    except (ValueError, OSError, EOFError) as error:
        logger.warning("%s is not what was written (%s): it is made anew", path, error)
        return None
    return states


def _check_room(upper: UpperBlocks, rows: int, size: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    logger.info(
        "what the blocks below %d give for %d rows is computed once, and kept in %s: %.1f MiB",
        *(upper.first, rows, folder, size / 2**20),
    )
    if free < size:
        raise ValueError(
            f"{folder} has room for {free >> 20} MiB, and what the frozen blocks give takes {size >> 20} MiB: give "
            "--kept_states a folder with more room"
        )


def _computed(
    upper: UpperBlocks, fed: Sequence[tuple[int, ...]], bits: Any, progress: Callable[[int], object]
) -> Iterator[np.ndarray]:
    signed = torch.int16 if bits is np.int16 else torch.int32
    for length, group in itertools.groupby(fed, key=len):
        same, size = list(group), max(1, BATCH_TOKENS // length)
        for batch in (same[i : i + size] for i in range(0, len(same), size)):
            yield upper.hidden(batch).contiguous().view(signed).cpu().numpy()
            progress(len(batch))


def _write(path: Path, dtype: np.dtype, shape: tuple[int, int], parts: Iterable[np.ndarray]) -> None:
    """A .npy file, one part after the other; whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # runs in containers may have equal numbers
    try:
        with temporary.open("wb") as file:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            checksum = 0
            for part in parts:
                file.write(part.data)
                checksum = zlib.crc32(part.data, checksum)
            file.write(_CHECKSUM.pack(checksum))  # behind the array, where numpy does not look
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _ordered(fed: Iterable[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return sorted(fed, key=lambda tokens: (len(tokens), tokens))


def _file_name(upper: UpperBlocks, parts: Sequence[Sequence[tuple[int, ...]]]) -> str:
    digest = hashlib.blake2b(f"{upper.digest()} {[len(part) for part in parts]}".encode(), digest_size=16)
    for tokens in itertools.chain(*parts):
        digest.update(_key(tokens))
    return digest.hexdigest()


def _key(fed: tuple[int, ...]) -> bytes:
    return hashlib.blake2b(np.array(fed, dtype=np.int64).tobytes(), digest_size=16).digest()
