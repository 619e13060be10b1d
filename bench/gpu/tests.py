"""The tests that want a GPU, by pytest itself."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from bench.common import report
from bench.gpu.where import Where

ROOT = Path(__file__).parents[2]
PROCESSES = 8
LAST = 40
"""Lines of pytest's that are shown, beside those of its progress."""

PRODUCTS = "the_reference or given_values_are_added"
"""A thousand cases of the noise kernel, for which it is compiled hundreds of times, so last; the part `bits` has most
of these as well."""


def measure(where: Where) -> None:
    """What is not compiled for long, and then the rest."""
    files = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in f.read_text())
    for what, chosen in (("all but products", f"not ({PRODUCTS})"), ("products", PRODUCTS)):
        began = time.perf_counter()
        code, counts = carried_out([*command(), "-k", chosen, *files])
        report(
            f"pytest -m gpu, {what}",
            equal={"passed": code == 0 and (where.rehearsal or counts.get("passed", 0) > 0)},
            goal="equal",
            tests=counts,
            seconds=round(time.perf_counter() - began, 1),
            device=where.device,
        )


def command() -> list[str]:
    """Without the plugins that happen to be installed: their warnings would be errors."""
    words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--tb=short"]
    if importlib.util.find_spec("xdist") is None:
        return words
    return [*words, "-p", "xdist", "-n", str(min(PROCESSES, os.cpu_count() or 1)), "--dist", "worksteal"]


def carried_out(words: list[str]) -> tuple[int, dict[str, int]]:
    """Its exit code, and how many tests ended how."""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    last: deque[str] = deque(maxlen=LAST)
    with subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            if re.match(r"\S+ +\[ *\d+%\]$", line):
                print(line, end="", flush=True)
            else:
                last.append(line)
    print(*last, sep="", end="", flush=True)
    found = re.findall(r"(\d+) (passed|failed|skipped|error)", last[-1] if last else "")
    return tests.returncode, {word: int(number) for number, word in found}
