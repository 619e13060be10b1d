"""Which checkpoint a job goes on from, told from what lies in its output folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from justforward.auto import settle
from justforward.optim.log import FILE_NAME, TrajectoryWriter, read
from justforward.training.checkpoints import write_mark
from justforward.training.resuming import (
    LAUNCH,
    RECORD,
    agreed,
    claimed,
    find_checkpoint,
    relaunched,
    share_log,
    write_record,
)

OURS, OTHER = {"seed": 0}, {"seed": 1}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "out"


def leave(folder, *, steps=0, checkpoints=(), marks=(), record=OURS):
    """What a job leaves: a log of so many steps, checkpoints with weights, and marks."""
    write_record(folder, record)
    writer = TrajectoryWriter(folder / FILE_NAME, {"samples": 1})
    for i in range(steps):
        writer.append([float(i)])
    writer.close()
    for step in (*checkpoints, *marks):
        place = folder / f"checkpoint-{step}"
        if step in marks:
            write_mark(place, step, None)
        else:
            place.mkdir()
            save_file({"w": torch.zeros(2)}, place / "model.safetensors")
            for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
                torch.save({}, place / name)
        TrainerState(global_step=step, max_steps=99, train_batch_size=4).save_to_json(str(place / "trainer_state.json"))


def found(folder, *, given=None, overwrite=False, record=OURS):
    path = find_checkpoint(folder, record, given=given, overwrite=overwrite)
    return None if path is None else Path(path).name


def test_the_log_where_it_reaches_farther(folder):
    leave(folder, steps=7, checkpoints=[3])
    assert found(folder) == FILE_NAME
    assert found(folder, given="True") == FILE_NAME
    assert found(folder, given=str(folder / "checkpoint-3")) == "checkpoint-3"
    assert found(folder, given="False") is None


def test_the_checkpoint_where_it_reaches_as_far(folder):
    leave(folder, steps=3, checkpoints=[3])
    assert found(folder) == "checkpoint-3"


def test_a_mark_ahead_of_its_log_does_not_count(folder):
    """As a loss of power may leave them."""
    leave(folder, steps=4, marks=[2, 5])
    assert found(folder) == FILE_NAME
    (folder / FILE_NAME).unlink()
    assert found(folder) is None


@pytest.mark.parametrize("given", [None, "False", "elsewhere"])
def test_checkpoints_of_another_job_are_not_taken_for_this_ones(folder, given, tmp_path):
    leave(folder, checkpoints=[500], record=OTHER)
    if given == "elsewhere":
        leave(tmp_path / "elsewhere", checkpoints=[9])
        given = str(tmp_path / "elsewhere" / "checkpoint-9")
    with pytest.raises(ValueError, match=r"holds checkpoints of another job \(it differs in seed\)"):
        found(folder, given=given)
    assert found(folder, overwrite=True, given=given) == ((given and given != "False" and "checkpoint-9") or None)


def test_only_restarts_of_the_same_launch_are_known_again(folder, monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    write_record(folder, OURS)
    assert not relaunched(folder)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    assert not relaunched(folder)
    write_record(folder, OURS)
    assert json.loads((folder / RECORD).read_text())[LAUNCH] == "a"
    assert relaunched(folder)  # also where a machine joins, which is not counted as a restart
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    write_record(folder, OURS)
    assert not relaunched(folder)  # every launch without a name is called so
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert relaunched(folder)
    assert found(folder) is None  # the launch is no part of the job


def test_the_longest_log_of_this_job_is_shared(tmp_path, monkeypatch):
    """Two machines with folders of their own, one after the other in this process."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    leave(ours, steps=3)
    leave(theirs, steps=9, record=OTHER)
    files = [(ours / name).read_bytes() for name in (RECORD, FILE_NAME)]
    answers = iter([[None, None], [len(files[1]), 0], [files, None]])
    monkeypatch.setattr("justforward.training.resuming.gathered", lambda value: next(answers))
    share_log(theirs, OURS)
    assert len(read(theirs / FILE_NAME).steps) == 3
    assert len(read(theirs / "trajectory-1.log").steps) == 9
    assert json.loads((theirs / RECORD).read_text())["seed"] == 0


def test_a_machine_with_checkpoints_of_another_job_is_refused(folder):
    leave(folder, steps=9, checkpoints=[5], record=OTHER)
    with pytest.raises(ValueError, match="holds checkpoints of another job"):
        share_log(folder, OURS)


def test_a_machine_with_a_damaged_log_stops_all(folder, monkeypatch):
    leave(folder, steps=3, record=OTHER)
    (folder / FILE_NAME).write_bytes(b"damaged")
    told = []
    monkeypatch.setattr("justforward.training.resuming.gathered", lambda value: told.append(value) or [value])
    with pytest.raises(ValueError, match="not a trajectory log"):
        share_log(folder, OURS)
    assert len(told) == 1  # the others know before anyone stops


def test_what_any_machine_has_measured_counts(folder, monkeypatch):
    entry = {"job": OURS, "values": {"zo_eps": 0.1}}
    monkeypatch.setattr("justforward.auto.settle.gathered", lambda value: [value, entry])

    def measure():
        raise AssertionError("measured again")

    assert settle.settle(folder, OURS, ["zo_eps"], measure, anew=False) == entry


def test_alone_a_mistake_is_raised_as_it_is(folder):
    def look():
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        agreed(look, folder)
    assert agreed(lambda: "checkpoint-3", folder) == "checkpoint-3"


def test_a_folder_is_held_by_one(folder):
    folder.mkdir(exist_ok=True)
    with claimed(folder), pytest.raises(ValueError, match="another process trains there now"), claimed(folder):
        pass
    with claimed(folder):
        assert list(folder.iterdir()) == []
    (folder / "file").touch()
    with pytest.raises(ValueError, match=r"--output_dir .*file: "), claimed(folder / "file"):
        pass
    assert (folder / "file").exists()


def test_a_refused_job_leaves_no_folder_that_it_made(folder):
    with pytest.raises(ValueError, match="refused"), claimed(folder / "new"):
        raise ValueError("refused")
    assert not (folder / "new").exists()
    with claimed(folder / "new"):
        (folder / "new" / "log").touch()
    assert (folder / "new" / "log").exists()
