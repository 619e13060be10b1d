"""Run every measurement of this package: `python -m bench`, or `python -m bench noise evaluate` for some."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import sys

import bench


def main() -> None:
    """Run the named modules of bench, or all that have a main and what they need."""
    named = sys.argv[1:]
    for name in named or sorted(module.name for module in pkgutil.iter_modules(bench.__path__)):
        if name in ("__main__", "common"):
            continue
        module = importlib.import_module(f"bench.{name}")
        needs = getattr(module, "NEEDS", None)
        if needs and not named and importlib.util.find_spec(needs) is None:
            print(f"bench.{name} is left out: it needs {needs} (pip install {needs})", file=sys.stderr)
        elif getattr(module, "NEEDS_ROOT", False) and not named and os.geteuid() != 0:
            print(f"bench.{name} is left out: it makes namespaces or control groups, which needs root", file=sys.stderr)
        elif hasattr(module, "main"):
            module.main()


if __name__ == "__main__":
    main()
