"""Two seeds of a small training, and their report."""

import html
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from support.golden import DATA, MODEL

from justforward.command_line.arguments import parse
from justforward.commands.cli import main

ROOT = Path(__file__).parents[2]
# fmt: off
JOB = [
    "--task_name", "SST2", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--trainer", "zo",
    "--train_as_classification", "--num_train", "16", "--num_dev", "8", "--num_eval", "10", "--max_steps", "6",
    "--lr_scheduler_type", "constant", "--learning_rate", "1e-3", "--logging_steps", "2", "--eval_strategy", "steps",
    "--eval_steps", "3", "--save_strategy", "no",
]
# fmt: on


def words(seed):
    return [*JOB, "--seed", str(seed), "--train_set_seed", str(seed), "--output_dir", f"result/out {seed}"]


def test_two_seeds_and_their_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, str(ROOT / "run.py"), *words(0)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "\r" not in ran.stdout + ran.stderr
    assert sum("'loss'" in line for line in ran.stdout.splitlines()) == 3
    assert main(words(1)) == 0
    results = [json.loads(path.read_text()) for path in sorted(Path("result").glob("*trainset?.json"))]
    assert len(results) == 2
    for seed, result in enumerate(results):
        about = result["run"]
        program, *given = shlex.split(about["command"])
        assert (program, parse(given)) == ("justforward", parse(words(seed)))
        assert (about["task"], about["model"], about["method"], about["seed"]) == ("SST2", MODEL, "MeZO", seed)
        assert Path(about["output_dir"], "trajectory.log").is_file()
        assert isinstance(result["seconds_per_step"], float)
        assert result["peak_memory_mib"] > 0

    assert main(["report", "result"]) == 0
    page = Path("report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub("<[^>]*>", "", page))
    for result in results:
        assert result["run"]["command"] in text
    mean = 50 * sum(result["accuracy"] for result in results)
    assert f"{mean:.1f}" in text
    assert "n = 2" in text
    for seed in (0, 1):
        assert page.count(f"<title>MeZO, train set {seed}, seed {seed}</title>") == 3  # loss, evaluation, course
    assert page.count("<title>MeZO</title>") == 2  # the histogram of both: its outline and its area
    assert page.count('role="img"') == 1 + 4  # beside the published numbers; and these four
    for name in ("report.md", "report.csv", "report.tex"):
        assert f"{mean:.1f}" in Path(name).read_text(encoding="utf-8")
