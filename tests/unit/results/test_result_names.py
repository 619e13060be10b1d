"""What a result file is called, and that no job's result takes the place of another's."""

import json
import os
from pathlib import Path

import pytest

from justforward.reporting.runs import _FILE_NAME
from justforward.results.files import model_label, result_name, try_to_write, write_json
from justforward.results.places import identity, place, predictions

ZERO_SHOT = "justforward --task_name SST2 --model_name a --num_eval 8"
ICL = f"{ZERO_SHOT} --num_train 4 --train_set_seed 0"
MEZO = f"{ICL} --trainer zo --learning_rate 1e-4"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize(
    ("model", "label"),
    [
        ("facebook/opt-13b", "opt-13b"),
        ("opt-13b", "opt-13b"),
        ("models/opt-13b/", "opt-13b"),
        ("model.gguf", "model.gguf"),
        (".", "here"),
        ("./", "here"),
        ("../here/..", "{above}"),
        ("..", "{above}"),
        ("/", "root"),
        ("a/checkpoint-500", "a-checkpoint-500"),
        ("./a/checkpoint-500/", "a-checkpoint-500"),
        ("checkpoint-500", "here-checkpoint-500"),
        ("org/checkpoint-500", "org-checkpoint-500"),
        ("runs/x/step_20", "x-step_20"),
        ("runs/x/epoch3", "x-epoch3"),
        ("runs/x/20000", "x-20000"),
        (r"C:\models\opt", "opt"),
        (r"C:\models\a\checkpoint-500", "a-checkpoint-500"),
        ("模型/checkpoint-1", "模型-checkpoint-1"),
    ],
)
def test_a_models_label(model, label, tmp_path):
    for name in ("a/checkpoint-500", "checkpoint-500", "models/opt-13b"):
        Path(name).mkdir(parents=True, exist_ok=True)
    assert model_label(model) == label.format(above=tmp_path.name)


def test_a_link_keeps_its_name():
    Path("a/checkpoint-500").mkdir(parents=True)
    Path("latest").symlink_to("a/checkpoint-500")
    assert model_label("latest") == "latest"


def test_the_published_name():
    settings = {"num_eval": 1000, "num_train": 32, "num_dev": 500, "tag": "x", "train_set": 3}
    name = result_name(task="SST2", model="facebook/opt-13b", sfc=True, icl_sfc=True, **settings)
    assert name == "SST2-opt-13b-sfc-icl_sfc-sampleeval1000-ntrain32-ndev500-x-trainset3.json"


def test_a_names_bytes_are_utf_8_and_paths_keep_theirs():
    name = result_name(task="é", model=os.fsdecode(b"m\xff"))
    assert os.fsencode(name) == b"\xc3\xa9-m\xff-onetrainpereval.json"


def result(command, **more):
    return {"accuracy": 0.5, "num_eval": 8, "seconds": 1.0, **more, "run": {"command": command}}


def write(path, command, *, named=False):
    """As a job does; where it went."""
    there = place(Path(path), command, named=named)
    write_json(there, result(command))
    predictions(there).write_text(command)
    return there


def holds(path):
    command = json.loads(Path(path).read_text())["run"]["command"]
    assert predictions(Path(path)).read_text() == command
    return command


@pytest.mark.parametrize("named", [True, False])
def test_the_same_job_replaces_its_own_result(named):
    assert write("r.json", MEZO, named=named) == Path("r.json")
    again = f"{MEZO} --output_dir elsewhere --overwrite_output_dir --tag x --verbose --resume_from_checkpoint False"
    assert write("r.json", again, named=named) == Path("r.json")
    assert sorted(p.name for p in Path().iterdir()) == ["r-predictions.jsonl", "r.json"]


def test_by_default_the_first_job_keeps_the_published_name(caplog):
    for _ in range(2):
        places = [write("r.json", command) for command in (ICL, MEZO, f"{MEZO[:-1]}5", MEZO)]
        assert places[0] == Path("r.json")
        assert places[1] == places[3]
        assert len(set(places)) == 3
        assert [holds(path) for path in places[:3]] == [ICL, MEZO, f"{MEZO[:-1]}5"]
    assert "r.json holds the result of another job (it differs in learning_rate, trainer): " in caplog.text
    # A place of its own stays one, whatever becomes of the first's.
    Path("r.json").unlink()
    assert write("r.json", MEZO) == places[1]


def test_a_file_that_was_named_holds_the_latest_and_the_others_are_kept(caplog):
    for command in (ICL, MEZO, ICL, MEZO):
        assert write("r.json", command, named=True) == Path("r.json")
        assert holds("r.json") == command
    (kept,) = [p for p in Path().glob("r-????????.json") if holds(p) == ICL]
    assert f"r.json held the result of another job (it differs in learning_rate, trainer), which is kept as {kept}" in (
        caplog.text
    )


@pytest.mark.parametrize("text", ['{"accuracy": 0.5, "num_eval": 8, "seconds": 1.0}', "{", "[]", '{"run": 3}', "notes"])
@pytest.mark.parametrize("named", [True, False])
def test_a_file_that_does_not_tell_its_job_is_kept(text, named, caplog):
    Path("r.json").write_text(text)
    there = write("r.json", MEZO, named=named)
    assert (there == Path("r.json")) is named
    assert text in [p.read_text() for p in Path().glob("*.json")]
    assert "its file does not tell which" in caplog.text


def test_an_empty_file_is_nobodys():
    Path("r.json").touch()
    assert write("r.json", MEZO) == Path("r.json")


def test_what_makes_a_job_another_one():
    assert identity(MEZO) == identity(f"{MEZO} --output_dir x")
    assert identity(MEZO) == identity(f"{MEZO} --resume_from_checkpoint True")
    others = ["--seed 1", "--resume_from_checkpoint a/checkpoint-5", "--train_set_seed 1", "--merge_lora"]
    assert len({str(identity(f"{MEZO} {more}")) for more in ["", *others]}) == 5
    assert identity("justforward '") == {}


@pytest.mark.parametrize("model", ["opt", "a-checkpoint-500"])
def test_a_report_reads_the_names_of_today(model):
    stem = Path(write(f"SST2-{model}-ntrain4-trainset0.json", ICL)).stem
    beside = write(f"SST2-{model}-ntrain4-trainset0.json", MEZO).stem
    for name in (stem, beside):
        found = _FILE_NAME.fullmatch(name)
        assert found is not None
        assert (found["task"], found["model"], found["tag"]) == ("SST2", model, None)


def test_a_folder_is_no_result_file():
    with pytest.raises(ValueError, match=r"--result_file \.\. is a folder"):
        try_to_write(Path(".."))
