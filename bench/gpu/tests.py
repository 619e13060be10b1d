"""The tests that want a GPU, by pytest itself."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from bench.common import report
from bench.gpu.where import Where

ROOT = Path(__file__).parents[2]


def measure(where: Where) -> None:
    """Files that have such tests; in a rehearsal every one of them is skipped."""
    files = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in f.read_text())
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--tb=short", *files]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        assert tests.stdout is not None
        last = ""
        for line in tests.stdout:
            print(line, end="", flush=True)
            last = line
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    report(
        "pytest -m gpu",
        equal={"passed": tests.returncode == 0 and (where.rehearsal or counts.get("passed", 0) > 0)},
        goal="equal",
        tests=counts,
        seconds=round(time.perf_counter() - began, 1),
        device=where.device,
    )
