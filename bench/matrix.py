"""Which method has been held to which property: the contract suite's outcomes as a table.

Run: python -m bench.matrix > matrix.md; about three minutes.
A cell has how many cases passed; "-" where a property is not asked of a method.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from justforward.optim.methods import METHODS

SUITE = Path(__file__).parents[1] / "tests" / "contract" / "test_methods.py"
OUTCOME = re.compile(r"::test_(\w+)\[(.+)\] (PASSED|FAILED)")


def cells(lines: Iterable[str]) -> dict[tuple[str, str], Counter[str]]:
    """Outcomes by property and method, from what pytest prints."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for line in lines:
        if match := OUTCOME.search(line):
            words = match[2].split("-")
            spans = {"-".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
            for method in [max(known, key=len)] if (known := spans & METHODS.keys()) else []:
                found.setdefault((match[1], method), Counter())[match[3]] += 1
    return found


def table(found: dict[tuple[str, str], Counter[str]]) -> str:
    """The outcomes as Markdown."""
    properties = list(dict.fromkeys(name for name, _ in found))
    lines = ["| | " + " | ".join(f"`{method}`" for method in METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    for name in properties:
        counts = [found.get((name, method), Counter()) for method in METHODS]
        shown = [f"{c['FAILED']} of {c.total()} failed" if c["FAILED"] else str(c.total() or "-") for c in counts]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(SUITE)]
    print(table(cells(subprocess.run(command, capture_output=True, text=True).stdout.splitlines())))


if __name__ == "__main__":
    main()
