"""Any file of any checkpoint, cut, emptied, gone or exchanged: the same command ends right, or says what is wrong.

Right are the weights of the run that nothing happened to, to the bit. The other way out is one line and exit code 2.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.cases import cases
from support.golden import DATA, MODEL
from transformers import TrainerCallback

from justforward import experiment
from justforward.command_line.arguments import parse
from justforward.commands.cli import main

# fmt: off
JOB = ["--task_name", "SST2", "--model_name", MODEL, "--data_dir", DATA, "--use_cpu", "--disable_tqdm", "--no_eval",
       "--train_as_classification", "--num_train", "16", "--num_dev", "8", "--train_set_seed", "0", "--max_steps", "6",
       "--per_device_train_batch_size", "4", "--save_strategy", "steps", "--save_steps", "2", "--save_model",
       "--learning_rate", "1e-3", "--output_dir", "out"]
BEST = ["--eval_strategy", "steps", "--eval_steps", "2", "--load_best_model_at_end", "--learning_rate", "3e-2"]
WAYS = {
    "backpropagation": ["--trainer", "regular"],
    "backpropagation, best": ["--trainer", "regular", *BEST],
    "LoRA": ["--trainer", "regular", "--lora", *BEST],
    "MeZO": ["--trainer", "zo"],
    "MeZO, best": ["--trainer", "zo", *BEST],
    "MeZO, the last is best": ["--trainer", "zo", *BEST, "--learning_rate", "1e-3"],
    "MeZO, marks": ["--trainer", "zo", "--save_trajectory", *BEST],
}
# fmt: on
STATES = ("finished", "killed")
KINDS = ("cut", "emptied", "gone", "exchanged")


class Killed(Exception):
    pass


class KillAfter(TrainerCallback):
    """Ends the process's work as a signal would, within the fifth step."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 5:
            raise Killed


@dataclass(frozen=True)
class Harm:
    """What happens to a file: `file` of all in `checkpoint`, numbers modulo how many there are; where it is cut."""

    checkpoint: int
    file: int
    kind: str
    where: float

    def do(self, folder: Path) -> str:
        """Do it; what was done."""
        found = sorted(folder.glob("checkpoint-*"))
        checkpoint = found[self.checkpoint % len(found)]
        files = sorted(path for path in checkpoint.iterdir() if path.is_file())
        file = files[self.file % len(files)]
        other = found[self.checkpoint % len(found) - 1] / file.name
        told = f"{checkpoint.name}/{file.name} {self.kind}"
        if self.kind == "cut":
            os.truncate(file, int(self.where * file.stat().st_size))
        elif self.kind == "emptied":
            os.truncate(file, 0)
        elif self.kind == "gone" or not other.exists():
            file.unlink()
        else:
            shutil.copy(other, file)
        return told


harms = st.builds(Harm, st.integers(0, 2), st.integers(0, 12), st.sampled_from(KINDS), st.floats(0, 0.999))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {f"{p.name} {n}": w for p in folder.glob("*.safetensors") for n, w in load_file(p).items()}


class Runs:
    """Each way of training, ended and killed, in folders to copy; and the weights at the end."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.ends: dict[str, dict[str, torch.Tensor]] = {}

    def of(self, way: str, state: str) -> Path:
        place = self.folder / way
        if way not in self.ends:
            for name in STATES:
                (place / name).mkdir(parents=True)
                with pytest.MonkeyPatch.context() as patch:
                    patch.chdir(place / name)
                    if name == "finished":
                        assert main([*JOB, *WAYS[way]]) == 0
                    else:
                        with pytest.raises(Killed):
                            experiment.run(parse([*JOB, *WAYS[way]]), callbacks=[KillAfter()])
            self.ends[way] = weights(place / "finished" / "out")
            for path in (place / "finished" / "out").glob("*.safetensors"):
                path.unlink()  # what is compared is saved again
        return place / state


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def harmed(runs: Runs, way: str, state: str, harm: Harm, capfd: Any) -> str:
    """Give the command again after the harm; "right", or the error's line. Anything else fails."""
    work = runs.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(runs.of(way, state), work)
    told = harm.do(work / "out")
    capfd.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        code = main([*JOB, *WAYS[way]])
    err = capfd.readouterr().err
    shown = f"{way}, {state}, {told}:\n{err}"
    assert code in (0, 2), shown
    if code == 2:
        assert err.splitlines()[-1].startswith("justforward: error: "), shown
        assert "Traceback" not in err, shown
        return err.splitlines()[-1]
    found, expected = weights(work / "out"), runs.ends[way]
    assert found.keys() == expected.keys(), shown
    assert all(torch.equal(found[name], expected[name]) for name in expected), shown
    return "right"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("way", WAYS)
@cases(1)
@given(harm=harms)
def test_a_damaged_checkpoint_is_never_believed(runs, capfd, way, state, harm):
    harmed(runs, way, state, harm, capfd)
