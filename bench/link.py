"""Two network namespaces with a slow, lossy link between them, for benchmarks (Linux, root).

The link is a pair of TUN devices whose packets this process carries: so it needs no traffic-control module.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 1500
ADDRESSES = ("10.99.0.1", "10.99.0.2")
DEVICE = "tun0"


class Link(threading.Thread):
    """Carries packets between two TUN devices: each is lost by chance (`loss`), or arrives `delay` seconds late."""

    def __init__(self, ends: tuple[int, int], delay: float, loss: float):
        super().__init__(daemon=True)
        self.ends, self.delay, self.loss = ends, delay, loss
        self.chance = random.Random(0)
        self.bytes = [0, 0]
        self.packets = [0, 0]
        self.closed = False

    def run(self) -> None:
        """Until closed."""
        due: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self.closed:
            wait = max(0.0, due[0][0] - time.monotonic()) if due else 0.1
            readable, _, _ = select.select(self.ends, (), (), min(wait, 0.1))
            for end in readable:
                side = self.ends.index(end)
                packet = os.read(end, MTU + 4)
                self.bytes[side] += len(packet)
                self.packets[side] += 1
                if self.chance.random() >= self.loss:
                    number += 1
                    heapq.heappush(due, (time.monotonic() + self.delay, number, 1 - side, packet))
            while due and due[0][0] <= time.monotonic():
                _, _, to, packet = heapq.heappop(due)
                os.write(self.ends[to], packet)


@contextmanager
def two_hosts(delay: float, loss: float) -> Iterator[tuple[list[list[str]], Link]]:
    """Commands that run another command inside each namespace, and the link between them."""
    names = [f"justforward{i}-{os.getpid()}" for i in (0, 1)]
    ends: list[int] = []
    try:
        for name, own, peer in zip(names, ADDRESSES, reversed(ADDRESSES), strict=True):
            device = f"jf{len(ends)}{os.getpid() % 10**6}"
            ends.append(_tun(device))
            _ip("netns", "add", name)
            _ip("link", "set", device, "netns", name)
            _ip("-n", name, "link", "set", device, "name", DEVICE)
            _ip("-n", name, "address", "add", own, "peer", peer, "dev", DEVICE)
            for up in ("lo", DEVICE):
                _ip("-n", name, "link", "set", up, "up")
        link = Link((ends[0], ends[1]), delay, loss)
        link.start()
        yield [["ip", "netns", "exec", name] for name in names], link
        link.closed = True
        link.join()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
        for end in ends:
            os.close(end)


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return end


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
