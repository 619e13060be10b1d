"""The trajectory log: a whole run as a header and one small record per step (MeZO paper, section 2.1).

A file is appended to and never rewritten. The header pins everything that the run is a function of; a record holds the
step's projected gradients, 24 bits each, and a checksum over them, the step's number and the header. The optimiser
rounds its projected gradients to those 24 bits before it applies them, so the log loses nothing. A record is appended
before its update is applied: whatever moment a run is killed at, the log tells how far it came.

    magic 8 bytes | header length u32 | header, zlib-compressed JSON | crc32 of the header u32 | record | record | ...
    record: samples x 24 bits (sign, 8 bits of exponent, 15 of mantissa) | crc32, low byte (all 4 if samples > 1)

One direction per step makes 4 bytes a step: 80 kB for 20,000 steps.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"JFTRAJ1\n"
FILE_NAME = "trajectory.log"

GUIDED_FILE_NAME = "guided.log"
"""The same of guided steps: of each the scale of its direction, and its parts'. The directions take the rows."""

MARK = "trajectory.json"
"""In a checkpoint without weights: {"step": its step, "from": a checkpoint with weights to start from, or null}."""


class LogError(ValueError):
    """A log that is damaged, cut short, or of another run; the message says where, and what to do."""


def quantize(value: float) -> float:
    """`value` rounded to the 24 bits that a record keeps (to nearest, half up in magnitude; relative error 2^-16)."""
    return _decode(_encode(value))


def _encode(value: float) -> bytes:
    try:
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
    except OverflowError:
        return struct.pack("<I", 0x7F8000 if value > 0 else 0xFF8000)[:3]
    if bits & 0x7FFFFFFF > 0x7F800000:
        return struct.pack("<I", 0x7FC000)[:3]  # one NaN for all
    return struct.pack("<I", min(bits + 0x80, 0xFFFFFFFF) >> 8)[:3]


def _decode(data: bytes) -> float:
    (value,) = struct.unpack("<f", b"\0" + data)
    return value


@dataclass(frozen=True)
class Layout:
    """Sizes that follow from the header."""

    samples: int
    salt: int

    @property
    def checksum_size(self) -> int:
        """Bytes of checksum per record; one finds every flipped bit of three bytes."""
        return 1 if self.samples == 1 else 4

    @property
    def record_size(self) -> int:
        """Bytes per step."""
        return 3 * self.samples + self.checksum_size

    def checksum(self, step: int, payload: bytes) -> bytes:
        """Checksum of one record: it fits this step of this run only."""
        crc = zlib.crc32(payload, zlib.crc32(struct.pack("<IQ", self.salt, step)))
        return struct.pack("<I", crc)[: self.checksum_size]

    def record(self, step: int, values: Sequence[float]) -> bytes:
        """The bytes of one step."""
        assert len(values) == self.samples
        payload = b"".join(_encode(v) for v in values)
        return payload + self.checksum(step, payload)


@dataclass(frozen=True)
class Trajectory:
    """A log as read: `steps[i]` are the projected gradients of step i (NaN: a skipped step), up to the first damage.

    damaged: number of the first record whose checksum is wrong, or None; torn: bytes of an unfinished record at the
    end, left by a kill in the middle of a write; start: where the records begin in the file; size: its length.
    """

    path: Path
    header: dict[str, Any]
    steps: list[tuple[float, ...]]
    damaged: int | None
    torn: int
    start: int
    size: int

    def check(self) -> None:
        """Raise LogError, which says what can be done, where a record is damaged."""
        if self.damaged is None:
            return
        size = Layout(self.header["samples"], 0).record_size
        at = self.start + self.damaged * size
        raise LogError(
            f"{self.path}: record {self.damaged} (bytes {at} to {at + size - 1}) is damaged; {self.damaged} steps "
            f"before it are intact: replay with --to {self.damaged}, or cut the file to {at} bytes to go on from there"
        )


def read(path: Path) -> Trajectory:
    """Read a log up to the first damaged record. Raises LogError for a header that cannot be read, and OSError."""
    data = path.read_bytes()
    header, start, layout = _read_header(path, data)
    steps: list[tuple[float, ...]] = []
    size, damaged = layout.record_size, None
    count, torn = divmod(len(data) - start, size)
    for step in range(count):
        record = data[start + step * size : start + (step + 1) * size]
        payload, checksum = record[: 3 * layout.samples], record[3 * layout.samples :]
        if checksum != layout.checksum(step, payload):
            damaged = step
            break
        steps.append(tuple(_decode(payload[3 * i : 3 * i + 3]) for i in range(layout.samples)))
    return Trajectory(path, header, steps, damaged, torn, start, len(data))


def _read_header(path: Path, data: bytes) -> tuple[dict[str, Any], int, Layout]:
    if data[: len(MAGIC)] != MAGIC:
        raise LogError(f"{path}: not a trajectory log (it does not begin with {MAGIC!r})")
    at = len(MAGIC)
    if len(data) < at + 8:
        raise LogError(f"{path}: cut short inside the header: start the run anew, with --overwrite_output_dir")
    (length,) = struct.unpack_from("<I", data, at)
    end = at + 4 + length
    if len(data) < end + 4:
        raise LogError(f"{path}: cut short inside the header: start the run anew, with --overwrite_output_dir")
    compressed = data[at + 4 : end]
    (salt,) = struct.unpack_from("<I", data, end)
    if zlib.crc32(data[:end]) != salt:
        raise LogError(f"{path}: the header is damaged; nothing can be recovered without an intact copy of it")
    header = json.loads(zlib.decompress(compressed))
    return header, end + 4, Layout(header["samples"], salt)


class TrajectoryWriter:
    """Appends records to a new log, or goes on with an existing one of the same run.

    Args:
        path: the log; its folder is made.
        header: what pins the run, JSON values; must hold "samples".
        resume_at: None starts a new log (a file already there is replaced); a number of steps keeps so many records of
            the log that is there, and drops what follows.

    Raises LogError where the log to go on with is damaged before that step, shorter, or of another run.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume_at: int | None = None):
        self.path = path
        encoded = zlib.compress(json.dumps(header, sort_keys=True, separators=(",", ":")).encode(), 9)
        head = MAGIC + struct.pack("<I", len(encoded)) + encoded
        self.layout = Layout(header["samples"], zlib.crc32(head))
        head += struct.pack("<I", self.layout.salt)
        if resume_at is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(head)
            temporary.replace(path)
            self.steps = 0
        else:
            there = read(path)
            if dict(header) != there.header:
                raise LogError(f"{path}: is of another run: {difference(there.header, header)}")
            if len(there.steps) < resume_at:
                raise LogError(f"{path}: holds {len(there.steps)} intact steps and step {resume_at} is asked for")
            os.truncate(path, len(head) + resume_at * self.layout.record_size)
            self.steps = resume_at
        self._file = path.open("ab", buffering=0)

    def append(self, values: Sequence[float]) -> None:
        """Add the next step's projected gradients, rounded by `quantize`; one write, whole or not at all."""
        record = self.layout.record(self.steps, values)
        if self._file.write(record) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        self.steps += 1

    def sync(self) -> None:
        """Put what was appended on the disk: survives a loss of power, not only a kill."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            self.sync()
            self._file.close()


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """The first entries in which two headers differ, in words."""
    keys = [k for k in sorted({*a, *b}) if a.get(k) != b.get(k)]
    shown = [f"{k} was {_short(a.get(k))}, is {_short(b.get(k))}" for k in keys[:3]]
    return "; ".join(shown) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_skipped(values: Sequence[float]) -> bool:
    """Whether a record stands for a step whose loss was not finite: nothing was applied."""
    return not all(math.isfinite(v) for v in values)
