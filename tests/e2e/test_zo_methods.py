"""Every method through the command line: killed and continued, and replayed, it is the same run, to the bit."""

import json
from pathlib import Path

import pytest
from support.golden import DATA, MODEL
from support.killing import KillAfter, Killed, same

from justforward import experiment
from justforward.command_line.arguments import parse
from justforward.commands.cli import main
from justforward.optim.methods import METHODS

# fmt: off
JOB = ["--task_name", "SST2", "--data_dir", DATA, "--model_name", MODEL, "--use_cpu", "--disable_tqdm", "--no_eval",
       "--train_as_classification", "--num_train", "16", "--train_set_seed", "0", "--report_to", "none",
       "--per_device_train_batch_size", "4", "--max_steps", "5", "--learning_rate", "1e-4", "--save_model",
       "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", "--trainer", "zo", "--load_bfloat16"]
# fmt: on
SMALLER = {"subzero+": ["--zo_samples", "3", "--zo_rank", "4", "--zo_refresh", "2"], "lozo-m": ["--zo_refresh", "2"]}
TRIED = ["adamezo", "conmezo", "eggroll", "grzo", "lozo-m", "sparse-mezo", "subzero+"]
"""Of every direction and rule one."""


def counts(folder):
    """Forward passes and examples by step, as logged."""
    log = json.loads(Path(f"{folder}/trainer_state.json").read_text())["log_history"]
    return {entry["step"]: (entry["forwards"], entry["examples"]) for entry in log if "forwards" in entry}


def test_one_of_every_part_is_tried():
    tried = [METHODS[name] for name in TRIED]
    parts = {"dense", "sgd", "sign", "rebuilt_momentum", "low_rank"}  # of mezo, or of the same file as another
    assert {m.directions for m in METHODS.values()} - parts <= {m.directions for m in tried}
    assert {m.rule for m in METHODS.values()} - parts <= {m.rule for m in tried}


@pytest.mark.parametrize("method", TRIED)
def test_killed_continued_and_replayed_it_is_the_same_run(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = [*JOB, "--zo_method", method, *SMALLER.get(method, [])]
    assert main([*job, "--output_dir", "whole"]) == 0
    assert main(["replay", "whole", "--output", "replayed"]) == 0
    assert same("whole", "replayed")
    killed = [*job, "--output_dir", "killed"]
    with pytest.raises(Killed):
        experiment.run(parse(killed), callbacks=[KillAfter(3)])
    assert main(killed) == 0
    assert same("whole", "killed")
    forwards = {"fzoo": 9, "subzero+": 4}.get(method, 2)
    assert counts("whole") == {step: (forwards * step, 4 * forwards * step) for step in range(1, 6)}
    assert counts("killed").items() <= counts("whole").items()  # steps that came from the log have no entry
    assert 5 in counts("killed")
