"""The call for a GPU loses nothing: parts share its budget, one that overruns is cut, figures are kept as they come."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd.profiler_util import FunctionEventAvg

from bench.common import RESULTS, meets, report
from bench.gpu import main, runner
from bench.gpu.listing import BUDGET, PARTS, limits, stages
from bench.gpu.offload import largest
from bench.gpu.where import Where, place_of
from bench.processes import children

FIGURE = {"figure": "one", "goal": "<= 1", "met": False}


def child(code: str, before: str = "") -> runner.Child:
    """A part that waits for its turn, as they all do."""
    return runner.Child("some", [sys.executable, "-S", "-c", f"import sys\n{before}\nsys.stdin.readline()\n{code}"])


def test_the_limits_of_the_parts_sum_to_the_budget():
    for names, budget in (([], BUDGET), ([], 100), (["step", "bandwidth"], 95), (["run", "tests", "offload"], 200)):
        shares = limits(names, budget)
        assert sorted(shares) == sorted(names or [part.name for part in PARTS])
        assert sum(max(shares[part.name] for part in stage) for stage in stages(names)) == pytest.approx(budget)
    assert limits() == {part.name: part.seconds for part in PARTS}
    assert all((Path(runner.__file__).parent / f"{part.name}.py").is_file() for part in PARTS)


def test_what_is_timed_runs_alone_and_before_the_rest():
    *alone, together = [[part.name for part in stage] for stage in stages()]
    assert alone == [[part.name] for part in PARTS if part.timed]
    assert together == [part.name for part in PARTS if not part.timed]
    assert [[part.name for part in stage] for stage in stages(["tests", "step"])] == [["step"], ["tests"]]


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Children that note when they began and ended, 0.2 s later; and what was reported."""
    code = """
import sys, time
began = time.monotonic()
time.sleep(0.2)
open(sys.argv[1], "w").write(f"{began} {time.monotonic()}")
"""

    def begin(part, device):
        wait = "import sys; sys.stdin.readline()"
        return runner.Child(part.name, [sys.executable, "-S", "-c", wait + code, str(tmp_path / part.name)])

    reported: list[str] = []
    monkeypatch.setattr(runner, "begin", begin)
    monkeypatch.setattr(runner, "ended", lambda outcome, device: reported.append(outcome.name))
    return lambda name: [float(word) for word in (tmp_path / name).read_text().split()], reported


def test_only_parts_that_time_nothing_run_at_once(stand_ins):
    times, reported = stand_ins
    names = ["step", "profile", "run", "ranks", "tests"]
    outcomes = runner.carry_out(names, limits(names), "cpu")
    assert [outcome.name for outcome in outcomes] == names
    assert not any(outcome.cause for outcome in outcomes)
    assert reported[:2] == names[:2]
    assert sorted(reported) == sorted(names)
    assert times("step")[1] <= times("profile")[0]
    assert times("profile")[1] <= min(times(name)[0] for name in names[2:])
    assert max(times(name)[0] for name in names[2:]) < min(times(name)[1] for name in names[2:])


def test_parts_at_once_have_limits_of_their_own():
    slow, quick = child("import time; time.sleep(60)"), child("print('done')")
    outcomes = runner.at_once([slow, quick], [0.3, 20], "cpu")
    assert [outcome.cause for outcome in outcomes] == ["cut after 0 s", ""]
    assert slow.process.poll() == -signal.SIGKILL, "it did not come to its end"


def test_an_end_from_outside_leaves_none_of_the_parts_running(monkeypatch):
    def stop(futures):
        raise SystemExit(143)

    monkeypatch.setattr(runner, "as_completed", stop)
    sleeping = [child("import time; time.sleep(60)") for _ in range(2)]
    with pytest.raises(SystemExit):
        runner.at_once(sleeping, [90, 90], "cpu")  # over after the sleep: what cuts it is the end from outside
    assert [one.process.poll() for one in sleeping] == 2 * [-signal.SIGKILL]


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


def test_a_wait_for_the_device_is_told_by_its_place(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def run():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("another", stacklevel=1)

    (told,) = Where("cuda").waits(run).items()
    assert told[0].startswith(f"{__file__}:")
    assert told[1] == 2
    assert modes == ["warn", "default"]
    assert Where("cpu").waits(lambda: None) == {}


def test_a_place_is_the_innermost_line_of_the_package():
    frames = [
        SimpleNamespace(filename="/a/bench/step.py", lineno=1),
        SimpleNamespace(filename="/a/src/justforward/optim/mezo.py", lineno=2),
        SimpleNamespace(filename="/a/torch/nn/modules/module.py", lineno=3),
    ]
    assert place_of(frames) == "justforward/optim/mezo.py:2"  # type: ignore[arg-type]
    assert place_of(frames[:1]) == "/a/bench/step.py:1"  # type: ignore[arg-type]


def test_the_offloaded_shape_is_one_that_time_and_memory_hold():
    assert largest(float("inf"), 100) == "13b"
    assert largest(60, 100) == largest(float("inf"), 30) == "6.7b"
    assert largest(20, 100) == largest(float("inf"), 3) == "1.3b"


def test_parts_that_fork_import_nothing_that_might_touch_the_device():
    code = "import sys, bench.gpu.bits; print(*(m for m in ('transformers', 'peft', 'numba') if m in sys.modules))"
    root = Path(runner.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
