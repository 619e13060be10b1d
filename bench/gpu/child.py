"""A part's own process: `python -m bench.gpu.child NAME DEVICE`, begun by a line with the seconds that it has."""

from __future__ import annotations

import importlib
import sys

from bench.gpu.where import Where


def main(name: str, device: str) -> None:
    """Import first, so that this is done when the turn comes; end where whoever would tell is gone."""
    part = importlib.import_module(f"bench.gpu.{name}")
    if seconds := sys.stdin.readline():
        part.measure(Where(device, float(seconds)))


if __name__ == "__main__":
    main(*sys.argv[1:])
