"""`justforward sweep` and `auto` through the command line, on the tiny model."""

import json
import shlex
from pathlib import Path

import pytest
from support.golden import DATA, MODEL

from justforward.commands.cli import main
from justforward.optim.log import read
from justforward.sweep import runs, study

# fmt: off
JOB = ["--task_name", "SST2", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--trainer",
       "zo", "--train_as_classification", "--num_train", "16", "--num_dev", "8", "--num_eval", "6", "--train_set_seed",
       "0", "--max_steps", "6", "--per_device_train_batch_size", "4", "--report_to", "none"]
# fmt: on
SWEEP = ["sweep", "--trials", "2", "--seeds", "0", "--lr", "1e-5:1e-3", "--storage", "s.log", *JOB]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_killed_sweep_goes_on(monkeypatch, capsys):
    trained = []

    def killed_in_the_second(*args, **kwargs):
        trained.append(args[1])
        if len(trained) == 2:
            raise KeyboardInterrupt
        return runs.run(*args, **kwargs)

    monkeypatch.setattr(study, "run", killed_in_the_second)
    assert main(SWEEP) == 130
    with Path("s.log").open("a") as log:
        log.write('{"op_code":')  # a line that the kill cut off
    assert main(SWEEP) == 0
    assert trained[2] == trained[1]  # the trial that was cut off, again; and then one look at the best with its seed
    result = json.loads(Path("s.json").read_text())
    complete = [trial for trial in result["trials"] if trial["state"] == "complete"]
    assert len(complete) == 2
    assert result["best"][0]["loss"] == min(trial["loss"] for trial in complete)
    assert {p.name for p in Path().iterdir()} == {"s", "s.log", "s.json"}  # nothing was evaluated
    shown = capsys.readouterr().out.splitlines()[-1]
    assert shown == result["command"]
    words = shlex.split(shown)
    assert float(words[words.index("--learning_rate") + 1]) == result["best"][0]["values"]["learning_rate"]

    before = len(trained)
    assert main([*SWEEP, "--seeds", "0,1", "--best", "1"]) == 0
    best = json.loads(Path("s.json").read_text())["best"]
    assert [len(row["losses"]) for row in best] == [2]
    assert len(trained) == before + 2
    assert len(list(Path("s").iterdir())) == 3
    assert main([*SWEEP, "--max_steps", "8"]) == 2
    assert "holds a sweep with other arguments" in capsys.readouterr().err


def test_runs_that_diverge_are_not_fatal(capsys):
    words = [*SWEEP, "--lr", "1e6:1e7", "--zo_max_skipped", "2"]
    assert main(words) == 2
    assert "all 2 runs diverged or were stopped: lower --lr" in capsys.readouterr().err
    assert all(json.loads(p.read_text())["diverged"] for p in Path("s").glob("*/evaluations.json"))


@pytest.mark.parametrize("text", ["hello\n", "notes without an end", "1\n2\n", '{"a": 1}\n', "[]"])
def test_a_file_of_another_kind_is_no_storage(text, capsys):
    Path("s.log").write_text(text)
    assert main(SWEEP) == 2
    assert "--storage s.log: is no log of a sweep" in capsys.readouterr().err
    assert Path("s.log").read_text() == text


def test_runs_of_another_job_do_not_count():
    grid = [*SWEEP, "--sampler", "grid"]
    assert main(grid) == 0
    Path("s.log").unlink()
    other = [*grid, "--max_steps", "8"]
    assert main(other) == 0
    here = json.loads(Path("s.json").read_text())["trials"]
    assert main([*other, "--storage", "fresh.log"]) == 0
    assert here == json.loads(Path("fresh.json").read_text())["trials"]


def test_a_finer_grid_is_tried_whole(capsys):
    assert main([*SWEEP, "--sampler", "grid"]) == 0
    assert main([*SWEEP, "--sampler", "grid", "--trials", "4"]) == 0
    trials = json.loads(Path("s.json").read_text())["trials"]
    assert len(trials) == 4  # both ends are there already
    assert {t["state"] for t in trials} <= {"complete", "pruned"}
    assert main(SWEEP) == 2
    assert "holds a sweep with other sampler" in capsys.readouterr().err


def test_auto_is_resolved_once_and_resumed(capsys):
    words = [*JOB, "--zo_eps", "auto", "--learning_rate", "auto", "--lr_scheduler_type", "constant"]
    words += ["--save_strategy", "no", "--output_dir", "out", "--result_file", "r.json"]
    assert main(words) == 0
    result = json.loads(Path("r.json").read_text())
    header = read(Path("out/trajectory.log")).header
    assert header["schedule"]["lr"] == result["learning_rate"]
    assert {group["eps"] for group in header["groups"]} == {result["zo_eps"]}
    assert header["job"]["learning_rate"] == result["learning_rate"]
    assert len(result["auto"]) == 2
    # Other values in the file are what goes on, and do not fit the log: nothing was measured again.
    log = Path("out/trajectory.log").read_bytes()
    Path("out/trajectory.log").write_bytes(log[:-10])
    assert main(words) == 0
    assert Path("out/trajectory.log").read_bytes() == log
    assert "as measured before" in capsys.readouterr().err
    plain = [*JOB, "--zo_eps", str(result["zo_eps"]), "--learning_rate", str(result["learning_rate"]), *words[-8:]]
    assert main([*plain, "--output_dir", "plain"]) == 0
    assert read(Path("plain/trajectory.log")).steps == read(Path("out/trajectory.log")).steps
