"""Whole jobs of the original: its arguments give its result files, through the command line."""

import json

import pytest
from support.golden import DATA, MODEL, facts

from justforward.commands.cli import main

# Run on data of its own, which is cut from the model's output; not kept here.
RUNS = [r for r in facts("runs") if not r["name"].startswith("nondiffdata")]


def expected_name(name: str, argv: list) -> str:
    """The original numbers the only set 0 whatever its seed is (docs/parity.md): ours is named by its seed."""
    if "--train_set_seed" in argv:
        return name.replace("-trainset0.", f"-trainset{argv[argv.index('--train_set_seed') + 1]}.")
    return name


@pytest.mark.parametrize("run", RUNS, ids=lambda r: f"{r['task']}-{r['name']}")
def test_result_files(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [str(word) for word in run["argv"]]
    code = main(["--task_name", run["task"], "--model_name", MODEL, "--data_dir", DATA, "--disable_tqdm", *argv])
    assert code == 0
    expected = {expected_name(name, run["argv"]): metrics for name, metrics in run["result_files"].items()}
    written = {p.name: json.loads(p.read_text()) for p in (tmp_path / "result").glob("*[0-9l].json")}
    assert set(written) == set(expected)
    for name, metrics in expected.items():
        for metric, value in metrics.items():
            assert written[name][metric] == pytest.approx(value)
        predictions = (tmp_path / "result" / name.replace(".json", "-predictions.jsonl")).read_text().splitlines()
        assert len(predictions) == written[name]["num_eval"]
