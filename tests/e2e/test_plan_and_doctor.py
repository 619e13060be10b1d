"""`plan` and `doctor` as a user runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from support.golden import MODEL

ROOT = Path(__file__).parents[2]


def run(*words, cwd):
    command = [sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_a_configuration_alone_makes_a_plan(tmp_path):
    (tmp_path / "model").mkdir()
    shutil.copy(Path(MODEL) / "config.json", tmp_path / "model")
    ran = run("plan", "model", "--memory", "8", "--dtype", "float32", "--tflops", "1", "--json", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    found = json.loads(ran.stdout)
    assert {job["fits"] for job in found["jobs"]} == {"yes"}
    assert all(job["seconds"] > 0 and job["memory"]["overhead"] > 100 << 20 for job in found["jobs"])
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["config.json"]


def test_doctor_finds_this_environment_in_order(tmp_path):
    ran = run("doctor", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "equal to its definition to the bit" in ran.stdout
    assert ran.stdout.splitlines()[0] == "packages"
    assert list(tmp_path.iterdir()) == []
