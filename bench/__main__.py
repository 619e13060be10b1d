"""Run every measurement of this package: `python -m bench`, or `python -m bench noise scoring` for some."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import bench


def main() -> None:
    """Run the named modules of bench, or all that have a main."""
    for name in sys.argv[1:] or sorted(module.name for module in pkgutil.iter_modules(bench.__path__)):
        if name in ("__main__", "common"):
            continue
        run = getattr(importlib.import_module(f"bench.{name}"), "main", None)
        if run is not None:
            run()


if __name__ == "__main__":
    main()
