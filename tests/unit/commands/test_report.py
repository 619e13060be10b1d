"""`justforward report`: what is read, averaged, chosen, shown and escaped."""

import csv
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from justforward import tasks
from justforward.commands.cli import main
from justforward.optim.log import TrajectoryWriter
from justforward.reporting.charts import thin, trainings
from justforward.reporting.reading import read_runs
from justforward.reporting.tables import choose, group, labels, make_table, published, summarise

COMMAND = (
    "justforward --task_name {task} --model_name my/opt --trainer zo --num_train 8 --learning_rate {lr} --seed {seed}"
)
HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&|$%_\\"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, accuracy=0.5, *, task="SST2", method="MeZO", seed=0, lr="1e-6", run=None, **more):
    """A result file, as today's runs write it; run: changes of its entry "run", or False for an older file."""
    about = {"task": task, "model": "my/opt", "method": method, "seed": seed, "date": "2026-01-01T00:00:00+00:00"}
    about["command"] = COMMAND.format(task=task, lr=lr, seed=seed)
    value = {"accuracy": accuracy, "num_train": 8, "train_set_seed": seed, "num_eval": 100, "seconds": 2.5, **more}
    value |= {} if run is False else {"run": about | (run or {})}
    path = Path("result", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_folder(name, *, steps=4, job=None):
    folder = Path("result", name)
    folder.mkdir(parents=True)
    history = [
        {"step": s, "loss": 1 / s, "projected_grad": float(s), "steps_per_second": 4.0} for s in range(1, steps + 1)
    ]
    history.append({"step": steps, "eval_accuracy": 0.75, "eval_loss": 0.5, "epoch": 1.0})
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": history}))
    (folder / "justforward_job.json").write_text(json.dumps(job or {}))
    return folder


def one_run(*paths):
    runs, warnings = read_runs([str(p) for p in paths] or ["result"])
    assert warnings == []
    (run,) = runs
    return run


# the numbers


def test_interval_is_students():
    summary = summarise([1.0, 2.0, 3.0])
    assert (summary.n, summary.mean) == (3, 2.0)
    assert summary.half == pytest.approx(4.302652729911275 / 3**0.5)  # t of 2 degrees of freedom, from a printed table
    assert summarise([1.0]).half is None
    assert summarise([2.0, 2.0]).half == 0.0


def test_published_numbers_are_whole():
    p = published()
    assert sorted(p["tasks"]) == tasks.names()
    assert {len(row) for row in p["methods"].values()} == {11}
    assert p["methods"]["MeZO"][0] == 91.4
    assert p["methods"]["FT"][-1] == 31.3


# reading


def test_a_run_of_today():
    path = write("a.json", 0.9, seed=3, dev_accuracy=0.8, train_steps=4, run={"output_dir": "result/out"})
    write_folder("out", job={"task_name": "SST2", "train_set": 3, "seed": 3, "model_name": "my/opt"})
    run = one_run()
    assert (run.path, run.task, run.model, run.method, run.metric) == (path, "SST2", "my/opt", "MeZO", "accuracy")
    assert (run.value, run.dev, run.seed, run.train_set) == (90.0, 80.0, 3, 3)
    assert run.settings == {"num_train": "8", "learning_rate": "1e-6"}
    assert run.log is not None
    assert run.log.gradients == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert run.seconds_per_step == 0.25  # from the log, which is all that there is


@pytest.mark.parametrize(
    ("name", "more", "expected"),
    [
        ("SST2-opt-125m-onetrainpereval", {"num_train": 0}, ("SST2", "opt-125m", "Zero-shot")),
        ("Copa-opt-13b-ntrain32-trainset0", {"num_train": 32}, ("Copa", "opt-13b", "ICL")),
        (
            "RTE-opt-125m-sampleeval1000-ntrain1000-ndev500-mezo-lora-20000-16-1e-5-1e-3-0-trainset0",
            {"train_steps": 9, "zero_steps": 0, "skipped_steps": 0},
            ("RTE", "opt-125m", "MeZO (LoRA)"),
        ),
        ("CB-a-b-ntrain8-trainset0", {"train_steps": 9}, ("CB", "a-b", "FT")),
        ("WSC-x-ntrain8-trainset0", {"penalty": 1.0, "train_accuracy": 1.0}, ("WSC", "x", "LP")),
        ("mine", {"train_steps": 9, "zero_steps": 0}, ("unknown task", "unknown model", "MeZO")),
    ],
)
def test_an_older_file_is_read_by_its_name(name, more, expected):
    write(f"{name}.json", run=False, **more)
    run = one_run()
    assert (run.task, run.model, run.method) == expected
    assert run.command is None


def test_an_older_file_finds_its_folder():
    job = {"task_name": "RTE", "model_name": "my/opt", "trainer": "zo", "prefix_tuning": True, "train_set": 0}
    write("seed0.json", run=False, train_steps=4)
    write_folder("seed0", job=job)
    run = one_run()
    assert (run.task, run.model, run.method) == ("RTE", "my/opt", "MeZO (prefix)")
    assert run.log is not None


def test_older_files_of_several_seeds_are_one_group():
    for seed in range(3):
        name = f"SST2-opt-ntrain8-ndev4-mezo-ft-20-8-1e-5-1e-3-{seed}-trainset{seed}.json"
        write(name, 0.5 + seed / 10, run=False, seed=seed, zero_steps=0, train_steps=1)
    runs, _ = read_runs(["result"])
    assert [len(g.runs) for g in group(runs)] == [3]


def test_the_log_of_another_job_is_not_shown():
    write("a.json", train_steps=4, run={"output_dir": "result/out"})
    write_folder("out", job={"task_name": "RTE"})
    assert one_run().log is None


def test_of_two_runs_in_one_folder_the_later_has_the_log():
    for name, date in ("old", "2026-01-01"), ("new", "2026-02-01"):
        write(f"{name}.json", train_steps=4, lr=name, run={"output_dir": "result/out", "date": date})
    write_folder("out")
    runs, _ = read_runs(["result"])
    assert {run.path.stem: run.log is not None for run in runs} == {"old": False, "new": True}


def test_gradients_come_from_the_trajectory_log():
    write("a.json", train_steps=4, run={"output_dir": "result/out"})
    log = write_folder("out") / "trajectory.log"
    writer = TrajectoryWriter(log, {"samples": 2})
    for values in [(1.0, -2.0), (float("nan"), 4.0), (8.0, 16.0)]:
        writer.append(values)
    writer.close()
    run = one_run()
    assert run.log is not None
    assert run.log.gradients == [(1, 1.0), (1, -2.0), (2, 4.0), (3, 8.0), (3, 16.0)]
    log.write_bytes(log.read_bytes()[:-1] + b"\x00")
    (run,), (warning,) = read_runs(["result"])
    assert "record 2" in warning
    assert run.log is not None
    assert run.log.gradients[-1] == (2, 4.0)


def test_other_files_are_passed_over_and_damaged_ones_named():
    write("good.json")
    Path("result/config.json").write_text('{"model_type": "opt"}')
    Path("result/list.json").write_text("[1]")
    Path("result/half.json").write_text('{"accuracy": 0.5, "num_')
    Path("result/latin.json").write_bytes(b'{"accuracy": "\xff"}')
    write("nan.json", float("nan"))
    Path("result/word.json").write_text('{"accuracy": "good", "num_eval": 1, "seconds": 1}')
    write("checkpoint-5/inside.json")
    write(".hidden.json")
    runs, warnings = read_runs(["result"])
    assert [run.path.name for run in runs] == ["good.json"]
    assert len(warnings) == 4
    assert [w.split(":")[0] for w in warnings] == [f"result/{n}.json" for n in ("half", "latin", "nan", "word")]


def test_hostile_types_do_no_harm():
    broken = {"command": "--x 'open", "task": ["a"], "model": {}, "method": 3, "seed": "x", "output_dir": 5}
    write("a.json", run=broken | {"date": "never", "versions": [1], "device": None}, train_steps="many", seconds=[])
    write_folder("a")
    Path("result/a/trainer_state.json").write_text('{"log_history": [1, {"step": "x"}, {"step": 1e999, "loss": 1}]}')
    assert main(["report", "result"]) == 0


# averaging and choosing


def test_only_seeds_are_averaged():
    for seed in (0, 1):
        for lr in ("1e-6", "1e-7"):
            write(f"{lr}-{seed}.json", seed=seed, lr=lr)
    write("again.json", 0.7, seed=1, run={"date": "2026-03-01"})
    runs, _ = read_runs(["result"])
    groups = group(runs)
    assert [(g.settings["learning_rate"], [run.value for run in g.runs]) for g in groups] == [
        ("1e-6", [50.0, 70.0]),  # the run that was made again counts once
        ("1e-7", [50.0, 50.0]),
    ]
    assert labels(groups) == ["MeZO, learning_rate 1e-6", "MeZO, learning_rate 1e-7"]


def test_other_rows_and_other_metrics_are_not_averaged():
    write("a.json", 0.9, seed=0)
    write("b.json", 0.8, seed=1, run={"command": COMMAND.format(task="SST2", lr="1e-6", seed=1) + " --data_dir b"})
    path = write("c.json", 0.7, seed=2)
    path.write_text(path.read_text().replace('"accuracy"', '"f1"'))
    runs, _ = read_runs(["result"])
    assert sorted([run.value for run in g.runs] for g in group(runs)) == [[70.0], [80.0], [90.0]]


def test_settings_are_chosen_by_the_development_samples():
    write("a.json", 0.9, lr="1e-6", dev_accuracy=0.6)
    write("b.json", 0.8, lr="1e-7", dev_accuracy=0.7)
    chosen = choose(group(read_runs(["result"])[0]))
    assert [g.settings["learning_rate"] for g in chosen.values()] == ["1e-7"]
    write("b.json", 0.8, lr="1e-7")
    write("c.json", 0.8, lr="1e-7", seed=1)
    chosen = choose(group(read_runs(["result"])[0]))
    assert [g.settings["learning_rate"] for g in chosen.values()] == ["1e-7"]  # more runs, though it is worse


def test_the_table_is_in_the_papers_order():
    for i, (task, method) in enumerate([("DROP", "FT"), ("SST2", "MeZO"), ("Mine", "Mine"), ("SST2", "Zero-shot")]):
        write(f"{i}.json", task=task, method=method)
    table = make_table(group(read_runs(["result"])[0]))
    assert table.tasks == ["SST2", "DROP", "Mine"]
    assert [(block.model, block.published) for block in table.blocks] == [("my/opt", False), ("OPT-13B", True)]
    assert [method for method, _ in table.blocks[0].rows] == ["Zero-shot", "MeZO", "FT", "Mine"]
    assert [s and s.mean for s in dict(table.blocks[1].rows)["MeZO"]] == [91.4, 30.9, None]


# the page


class Page(HTMLParser):
    """What a browser would make of it: its tags with their attributes, and its text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(Path("report.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone(capsys):
    write("a.json", 0.9, train_steps=4, run={"output_dir": "result/out"})
    write("b.json", 0.8, seed=1)
    write_folder("out")
    assert main(["report", "result"]) == 0
    assert capsys.readouterr().out == "2 runs -> report.html, report.md, report.csv, report.tex\n"
    source, page = Path("report.html").read_text(encoding="utf-8"), Page()
    assert "prefers-color-scheme: dark" in source
    assert "width=device-width" in source
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    assert not re.search(r"url\(|@import", source)
    linked = {a.get(name) for _, a in page.tags for name in ("src", "href", "xlink:href") if name in a}
    assert {link for link in linked if not link.startswith("#")} == {
        published()["link"],
        "report.md",
        "report.csv",
        "report.tex",
    }
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {link[1:] for link in linked if link.startswith("#")} <= ids
    assert "85.0" in page.text
    assert "± 63.5, n = 2" in page.text
    for seed in (0, 1):
        assert COMMAND.format(task="SST2", lr="1e-6", seed=seed) in page.text
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 5  # the comparison, losses, evaluations, histogram, course


def test_hostile_names_stay_text():
    write(
        "a.json",
        task=HOSTILE,
        method=HOSTILE,
        train_steps=4,
        run={
            "model": HOSTILE,
            "command": f"justforward --tag {HOSTILE}",
            "device": HOSTILE,
            "output_dir": "result/out",
        },
    )
    write_folder("out")
    Path(f"result/{HOSTILE.replace('/', '')}.json").write_text("{")
    assert main(["report", "result"]) == 0
    page = Page()
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.text.count(HOSTILE) >= 6
    latex, markdown = (Path(f"report.{end}").read_text(encoding="utf-8") for end in ("tex", "md"))
    assert r"\&|\$\%\_\textbackslash{}" in latex
    assert "<script" not in markdown.replace("\\<", "")
    with Path("report.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["model"], row["method"], row["n"]) == (HOSTILE, HOSTILE, "1")


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("a $x_1$ method", "a $x_1$ method"),
        (r"$\frac{1}{$", r"$\frac{1}{$"),
        ("中文 😀", "中文 😀"),
        ("_under\n a -->", "_under a -->"),
        ("\x00\x1b[1m\ud800", "\ufffd\ufffd[1m\ufffd"),
        ("long " * 20, "long " * 5 + "long…"),
        ("", "MeZO"),
    ],
)
def test_labels_of_charts_are_taken_literally(method, shown):
    write("a.json", method=method, train_steps=4, run={"output_dir": "result/out"})
    write_folder("out")
    assert main(["report", "result", "--plots"]) == 0
    comparison, *_ = drawings()
    assert shown in [text.text for text in comparison.iter("text")]


def test_markdown_and_latex_hold_the_table():
    for seed, accuracy in enumerate([0.90, 0.92, 0.91]):
        write(f"{seed}.json", accuracy, seed=seed)
    assert main(["report", "result", "--output", "deep/r.html"]) == 0
    markdown, latex = (Path(f"deep/r.{end}").read_text(encoding="utf-8") for end in ("md", "tex"))
    assert "| MeZO | 91.0 ± 2.5 (n = 3) |" in markdown
    assert "| MeZO | 91.4 |" in markdown
    assert r"MeZO & 91.0 {\scriptsize $\pm$ 2.5, $n=3$} \\" in latex
    assert latex.count("{") == latex.count("}")


# charts


def test_long_curves_are_thinned_to_means():
    assert thin([(1, 2), (3, 4)], 2) == [(1, 2), (3, 4)]
    assert thin([(1, 2), (3, 4), (5, 0), (7, 2)], 2) == [(2, 3), (6, 1)]


def drawings():
    """The page's charts, each as the root of its SVG; the keys of legends have no role."""
    source = Path("report.html").read_text(encoding="utf-8")
    return [ET.fromstring(found) for found in re.findall(r'<svg [^>]*role="img".*?</svg>', source, re.DOTALL)]


def test_every_curve_is_drawn_and_tells_its_run():
    for seed in (0, 1):
        write(f"{seed}.json", train_steps=4, seed=seed, run={"output_dir": f"result/out{seed}"})
        write_folder(f"out{seed}")
    assert main(["report", "result"]) == 0
    comparison, *charts = [[g[0].text for g in root.iter("g") if len(g) and g[0].tag == "title"] for root in drawings()]
    assert comparison.count("MeZO: 50.0 ± 0.0, published 91.4") == 3  # the ring, the interval, the dot
    assert comparison.count("FT: published 92.0") == 1
    runs = [f"MeZO, train set {seed}, seed {seed}" for seed in (0, 1)]
    assert charts == [runs, runs, ["MeZO", "MeZO"], runs]  # losses, evaluations, the area and its outline, courses


def test_curves_are_drawn_over_steps_forwards_or_seconds():
    write("a.json", train_steps=4, forwards=40, seconds_per_step=2.0, run={"output_dir": "result/out"})
    write_folder("out")
    ends = {}
    for axis in ("steps", "forwards", "seconds"):
        assert main(["report", "result", "--x", axis]) == 0
        runs, _ = read_runs(["result"])
        (training,) = trainings(group(runs), ["MeZO"], axis)
        ends[axis] = training.charts[0].lines[0].points[-1][0], training.charts[0].x
    assert ends["forwards"] == (10 * ends["steps"][0], "forward passes")
    assert ends["seconds"] == (2 * ends["steps"][0], "seconds")


def test_charts_share_nothing_with_each_other_or_the_page():
    for i, task in enumerate(["SST2", "RTE"]):
        write(f"{i}.json", task=task, train_steps=4, seed=i, run={"output_dir": f"result/out{i}"})
        write_folder(f"out{i}")
    assert main(["report", "result"]) == 0
    source = Path("report.html").read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in Page().tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 4
    for root in drawings():
        own = {element.get("id") for element in root.iter()}
        assert {use.attrib["href"][1:] for use in root.iter("use")} <= own
        assert not [element for element in root.iter() if element.tag in ("style", "metadata", "clipPath")]
    assert main(["report", "result"]) == 0
    assert Path("report.html").read_text(encoding="utf-8") == source


def test_charts_follow_the_page_in_width_and_colours():
    write("a.json", train_steps=4, run={"output_dir": "result/out"})
    write_folder("out")
    assert main(["report", "result"]) == 0
    known = set(re.findall(r"(--[\w-]+): #", Path("report.html").read_text(encoding="utf-8")))
    assert len(drawings()) == 5
    for root in drawings():
        assert set(root.attrib) == {"viewBox", "role"}
        painted = [pair.split(": ") for e in root.iter() for pair in e.get("style", "").split("; ") if pair]
        colours = {value for name, value in painted if name in ("fill", "stroke")} - {"none"}
        assert colours <= {f"var({name})" for name in known}
        assert len(colours) > 2
        # SVG paints black what has no colour.
        assert not [e for e in root.iter("text") if "fill: var(" not in e.get("style", "")]


# mistakes


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([], "the following arguments are required: PATH"),
        (["nowhere"], "nowhere: no such file or folder"),
        (["."], "no runs in .: give folders that hold result files"),
        ([".", "--output", "report.pdf"], "--output report.pdf: give a name that ends in .html"),
        ([".", "--zzz"], "unrecognized arguments: --zzz"),
    ],
)
def test_mistakes_are_one_line(words, fragment, capsys):
    assert main(["report", *words]) == 2
    error = capsys.readouterr().err
    assert fragment in error
    assert len(error.splitlines()) == 1


def test_nothing_but_damage_is_a_mistake_that_names_the_file(capsys):
    Path("half.json").write_text("{")
    assert main(["report", "half.json"]) == 2
    assert "half.json: left out, its JSON is damaged" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_line(capsys):
    write("a.json")
    Path("file").write_text("")
    assert main(["report", "result", "--output", "file/report.html"]) == 2
    assert "--output file/report.html: cannot write" in capsys.readouterr().err


def test_plots_are_written(capsys):
    write("a.json", task="My/Task $x", train_steps=4, run={"output_dir": "result/out"})
    write_folder("out")
    assert main(["report", "result", "--plots"]) == 0
    assert "report-My_Task__x.png" in capsys.readouterr().out
    assert Path("report-My_Task__x.png").read_bytes().startswith(b"\x89PNG")


def test_matplotlib_is_loaded_where_something_is_drawn():
    code = (
        "import sys\nfrom justforward.commands.cli import main\n"
        "assert main(['report', 'nowhere']) == 2\n"
        "try:\n    main(['report', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
