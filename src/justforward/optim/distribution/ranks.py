"""What ranks of torch.distributed exchange in a step: two float32 per direction and one for the weight.

Ranks stand in groups of neighbours. A group probes directions of its own, the ranks of a group share the data of a
step; one group is data parallelism, as many groups as ranks is perturbation parallelism. Every rank applies every
direction, so their weights stay equal to the bit; `check_equal` holds them to it.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from justforward import launcher
from justforward.launcher import Launch

T = TypeVar("T")

CHECKED = 1 << 22
"""Elements that are summed up at a time for a checksum."""


class RankError(RuntimeError):
    """Other ranks do not answer, or hold other weights; one line says which, and what to do."""


@dataclass(frozen=True)
class Ranks:
    """A process among those of its job.

    rank, size: its number, and how many there are; groups: how many sets of ranks probe directions of their own.
    Rank r is in group r // (size / groups). Raises ValueError where the groups would be of different sizes.
    """

    rank: int = 0
    size: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        if self.groups < 1 or self.size % self.groups:
            raise ValueError(f"{self.size} ranks cannot form {self.groups} equal groups (--zo_direction_groups)")

    @classmethod
    def current(cls, groups: int = 1) -> Ranks:
        """The ranks of torch.distributed, where it is initialised; else this process alone, a group of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), groups)
        return cls()

    @property
    def members(self) -> int:
        """Ranks per group, which share the data of a step."""
        return self.size // self.groups

    @property
    def member(self) -> int:
        """The rank's number in its group."""
        return self.rank % self.members

    def directions(self, samples: int) -> range:
        """Which of a step's directions this rank probes: i where i % groups is its group."""
        return range(self.rank // self.members, samples, self.groups)

    def summed(self, sums: Sequence[float]) -> list[float]:
        """Every rank's pending sums, added up: (plus, minus) per direction, then the weight.

        Mean and difference of the two losses travel as float32, so that the difference keeps its own 24 bits.
        The weight comes back as that of one group: every direction is measured by one.
        """
        if self.size == 1:
            return list(sums)
        *losses, weight = sums
        halves = [v for p, m in zip(losses[::2], losses[1::2], strict=True) for v in ((p + m) / 2, p - m)]
        sent = torch.tensor([*halves, weight / self.groups], dtype=torch.float32, device=_device())
        answered(lambda: dist.all_reduce(sent))
        *halves, weight = sent.double().tolist()
        pairs = zip(halves[::2], halves[1::2], strict=True)
        return [v for mean, gap in pairs for v in (mean + gap / 2, mean - gap / 2)] + [weight]

    def check_equal(self, parameters: Iterable[Tensor], step: int) -> None:
        """Raise RankError, on every rank and naming the odd ones, unless all hold the same bits."""
        if self.size == 1:
            return
        own = torch.tensor([checksum(parameters)], device=_device())
        found = [torch.zeros_like(own) for _ in range(self.size)]
        answered(lambda: dist.all_gather(found, own))
        sums = [int(value) for value in found]
        (most, _), *others = Counter(sums).most_common()
        if others:
            odd = ", ".join(str(rank) for rank, value in enumerate(sums) if value != most)
            here = f" (this is one, on {socket.gethostname()})" if sums[self.rank] != most else ""
            raise RankError(
                f"step {step}: the weights of rank {odd}{here} differ from those of the others: check that machine's "
                "memory and that all run the same versions, and go on from the last checkpoint"
            )


def checksum(tensors: Iterable[Tensor]) -> int:
    """A number of 63 bits that depends on every bit of the tensors; equal on every device."""
    total = 0
    for t in tensors:
        flat = t.detach().contiguous().flatten()
        flat = flat.view(torch.int32 if flat.element_size() == 4 else torch.int16)
        for piece in flat.split(CHECKED):
            total = (total * 1_000_003 + int(piece.sum(dtype=torch.int64))) % (1 << 63)
    return total


def answered(collective: Callable[[], T]) -> T:
    """The result of a collective call; RankError where it fails because a rank is gone or too slow."""
    with ranks_answer():
        return collective()


@contextmanager
def ranks_answer() -> Iterator[None]:
    """Turns what a backend raises where a rank is gone or too slow into a RankError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RankError) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        rank, reason = Ranks.current().rank, " ".join(str(error).split())[-160:]
        raise RankError(
            f"rank {rank}: another rank is gone, cut off or slower than --ddp_timeout ({reason}): give the "
            "same command again and the run goes on from its log (torchrun --max_restarts does so by itself)"
        ) from error


def gathered(value: Any) -> list[Any]:
    """Every rank's value, by rank; for what is small or rare. Alone: [value]."""
    ranks = Ranks.current()
    if ranks.size == 1:
        return [value]
    values: list[Any] = [None] * ranks.size
    answered(lambda: dist.all_gather_object(values, value))
    return values


def join_cpu_ranks(launch: Launch, seconds: float) -> None:
    """Join the other CPU processes of a launch; one that does not answer for so many seconds is an error.

    accelerate would join them too, but without a time-out, and by addresses in torchrun's store, where those of the
    processes before a restart still stand.
    """
    rank, size = launch.rank, launch.size
    if size == 1 or not dist.is_available() or dist.is_initialized():
        return
    timeout = timedelta(seconds=float(seconds))
    where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(*where, is_master=rank == 0 and not launcher.keeps_store(), timeout=timeout)
    attempt = _agreed(PrefixStore("justforward", store), rank, size, timeout)
    dist.init_process_group("gloo", store=PrefixStore(attempt, store), rank=rank, world_size=size, timeout=timeout)


def _agreed(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """A name that only the processes of this attempt have, though what earlier ones wrote is in the store.

    Every rank writes a name of its own; rank 0 publishes the names that it reads, until all ranks have confirmed that
    theirs is among them.
    """
    own, patience = uuid.uuid4().hex, time.monotonic() + timeout.total_seconds()
    missing = f"rank {rank}: not all of {size} ranks have started within --ddp_timeout"
    store.set(f"name {rank}", own)
    while time.monotonic() < patience:
        try:
            store.wait([f"name {r}" for r in range(size)] if rank == 0 else ["names"])
        except dist.DistError as error:
            raise RankError(missing) from error
        if rank == 0:
            read = [store.get(f"name {r}").decode() for r in range(size)]
            store.set("names", " ".join(read))
            if store.check([f"{own} {r}" for r in range(1, size)]):
                return own
        else:
            names = store.get("names").decode().split()
            if len(names) == size and names[rank] == own:
                store.set(f"{names[0]} {rank}", "confirmed")
                return names[0]
        time.sleep(0.02)
    raise RankError(missing)


def _device() -> torch.device:
    """Where the backend takes its tensors from: the host wherever it can, since scalars are there."""
    host = "gloo" in dist.get_backend() or not torch.cuda.is_available()
    return torch.device("cpu") if host else torch.device("cuda", torch.cuda.current_device())
