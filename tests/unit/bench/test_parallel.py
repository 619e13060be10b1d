"""Measurements side by side: divided among processes, begun in order, cut with all that they started."""

import sys
import time
from types import SimpleNamespace

from bench import contenders, methods, parallel
from bench.parallel import groups, run, split, width

FIGURE = '{"figure": "one"}'


def code(text: str) -> list[str]:
    return [sys.executable, "-S", "-c", text]


def test_a_plan_is_divided_by_task_and_method_and_by_contender():
    words = ["--limit", "9", "--", "methods", "--methods", "mezo", "lozo", "--train_blocks=-3:", "--", "same", "a"]
    own, first, second = groups(words)
    assert own == ["--limit", "9"]
    same = ["--train_blocks=-3:"]
    assert split(first)[:2] == [["methods", "--tasks", "sentences", "--methods", m, *same] for m in ("mezo", "lozo")]
    assert len(split(first)) == 4
    assert split(second) == [second]
    several = split(["contenders", "mezo-lora", "icl", "--seeds", "0", "--jobs", "2"])
    assert [part[1] for part in several] == ["mezo-lora", "icl-4", "icl-16"]
    assert [width(part) for part in several] == [2, 2, 2]
    assert methods.options().parse_args(split(first)[1][1:]).methods == ["lozo"]


def test_a_rate_is_chosen_by_the_development_rows_whatever_runs_at_a_time(monkeypatch, capsys):
    def result(contender, seed, rate, *more):
        time.sleep(0.02 if rate == contender.rates[0] else 0.0)
        return {"dev_accuracy" if more else "accuracy": float(rate) + seed, "seconds": 1.0}

    monkeypatch.setattr(contenders, "result", result)
    monkeypatch.setitem(contenders.CONTENDERS, "some", contenders.Contender("", ("1e-3", "1e-2")))
    contenders.measure("some", [0, 1], jobs=2)
    assert '"accuracies": [0.01, 1.01], "learning_rate": "1e-2"' in capsys.readouterr().out


def test_figures_are_passed_on_and_a_failure_shows_what_it_said(capfd):
    figure = code(f"print('noise'); print('{FIGURE}')")
    lost = run([(["good"], figure), (["bad"], code("print('the cause'); raise SystemExit(3)"))], jobs=2)
    out, told = capfd.readouterr()
    assert (lost, out) == (1, f"{FIGURE}\n")
    assert "the cause" in told
    assert "exit code 3" in told
    assert "noise" not in told


def test_what_is_left_at_the_limit_is_cut_and_told(capfd, monkeypatch, tmp_path):
    """The time is over when both have printed their first figure; the second is that of one that was not cut."""
    marks = [tmp_path / "one", tmp_path / "two"]
    now = SimpleNamespace(monotonic=lambda: 2.0 if all(mark.exists() for mark in marks) else 0.0, sleep=time.sleep)
    monkeypatch.setattr(parallel, "time", now)
    print_figure = f"print('{FIGURE}', flush=True)"
    one, two = (
        code(f"import time; {print_figure}; open({str(mark)!r}, 'w').close(); time.sleep(60); {print_figure}")
        for mark in marks
    )
    assert run([(["one"], one), (["two"], two), (["three", "--jobs", "2"], two)], jobs=2, limit=1) == 3
    out, told = capfd.readouterr()
    assert out == 2 * f"{FIGURE}\n"
    assert [line.split(": ")[1] for line in told.splitlines()] == ["one", "two", "three --jobs 2"]
