"""The call for a GPU loses nothing: parts share its budget, one that overruns is cut, figures are kept as they come."""

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.profiler_util import FunctionEventAvg

from bench.common import RESULTS, meets, report
from bench.gpu import main, runner
from bench.gpu.listing import BUDGET, PARTS, limits
from bench.gpu.where import Where
from bench.processes import children

FIGURE = {"figure": "one", "goal": "<= 1", "met": False}


def child(code: str, before: str = "") -> runner.Child:
    """A part that waits for its turn, as they all do."""
    return runner.Child("some", [sys.executable, "-S", "-c", f"import sys\n{before}\nsys.stdin.readline()\n{code}"])


def test_the_limits_of_the_parts_sum_to_the_budget():
    assert sum(part.seconds for part in PARTS) == BUDGET
    assert sum(limits(budget=100).values()) == pytest.approx(100)
    some = limits(["step", "noise"], 95)
    assert list(some) == ["noise", "step"]
    assert sum(some.values()) == pytest.approx(95)
    assert all((Path(runner.__file__).parent / f"{part.name}.py").is_file() for part in PARTS)


def test_a_part_that_overruns_is_cut_with_all_that_it_started(tmp_path):
    sleeper = "import subprocess\np = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
    ready = tmp_path / "ready"
    begun = child(f"print({json.dumps(FIGURE)!r}, flush=True)\np.wait()", f"{sleeper}open({str(ready)!r}, 'w').close()")
    while not ready.exists():
        time.sleep(0.01)
    below = children(begun.process.pid)
    outcome = begun.carry_out(0.3)
    assert outcome.cause == "cut after 0 s"
    assert outcome.figures == [FIGURE]
    assert outcome.unmet == ["one"]
    assert below
    deadline = time.monotonic() + 20
    while any(map(alive, below)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(alive, below))


def alive(pid: int) -> bool:
    """Whether it runs: nobody here waits for a grandchild, which may stay as a zombie."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_part_that_fails_is_one_line_with_its_cause():
    outcome = child("raise ValueError('no such shape')").carry_out(20)
    assert outcome.cause == "failed: ValueError: no such shape"
    assert "failed" in outcome.row()


def test_every_figure_is_kept_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(RESULTS, str(tmp_path))
    for number in (1, 2):
        report(str(number), ratio={"a/b": number}, goal="<= 1.5")
        (file,) = tmp_path.iterdir()
        kept = [json.loads(line) for line in file.read_text().splitlines()]
        assert [line["met"] for line in kept] == [True, False][:number]
    assert capsys.readouterr().out == file.read_text()


def test_goals_are_held_against_every_number():
    assert meets(">= 4", {"ratio": {"a": 4, "b": 5}})
    assert not meets(">= 4", {"ratio": {"a": 4, "b": 3}})
    assert not meets("equal", {"equal": {"log": True, "weights": False}})


def test_without_a_gpu_it_says_so_and_does_nothing(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main() == 0
    told = capsys.readouterr()
    assert "no CUDA device" in told.err
    assert not told.out


def test_what_is_asked_of_a_gpu_is_asked_by_names_that_torch_has(monkeypatch):
    """The lines that a rehearsal cannot run: with a device that answers nothing."""
    asked = []
    for name, answer in (("reset_peak_memory_stats", None), ("synchronize", None), ("max_memory_allocated", 2**21)):
        monkeypatch.setattr(torch.cuda, name, lambda device, name=name, answer=answer: (asked.append(name), answer)[1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: asked.append("empty_cache"))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=24 * 2**30))
    gpu = Where("cuda")
    assert gpu.gib() == 24
    assert gpu.own_time(FunctionEventAvg()) == 0
    assert not gpu.is_kernel(FunctionEventAvg())
    assert gpu.peak_mib(lambda: asked.append("run")) == 2
    gpu.empty_cache()
    assert asked == ["reset_peak_memory_stats", "run", "synchronize", "max_memory_allocated", "empty_cache"]
    assert len(gpu.activities()) == 2
    assert gpu.pick("real", "rehearsed") == "real"
