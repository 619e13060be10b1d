import json
import sys

import pytest
from support.hub import fake_hub

from justforward.tasks import get_task

GOOD = {"sentence": "fine ", "label": 1}
COPA = {"premise": "P.", "choice1": "A.", "choice2": "B.", "question": "cause", "label": 0}
RECORD = {"passage": "P", "query": "@placeholder", "entities": ["A"], "answers": ["A"]}


def write(tmp_path, task, lines, validation=None):
    folder = tmp_path / task
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "validation.jsonl").write_text("\n".join(lines if validation is None else validation), encoding="utf-8")
    return str(tmp_path)


def error_of(tmp_path, task, lines, validation=None):
    data_dir = write(tmp_path, task, lines, validation)
    with pytest.raises(ValueError) as caught:
        get_task(task).load(data_dir)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_rows_in_their_order_blank_lines_skipped(tmp_path):
    lines = ["\ufeff" + json.dumps(GOOD), "", json.dumps({"label": 0, "sentence": "dull", "extra": None}), "  "]
    splits = get_task("SST2").load(write(tmp_path, "SST2", lines))
    assert [(s.id, s.data["sentence"], s.correct) for s in splits.train] == [(0, "fine ", 1), (1, "dull", 0)]
    assert splits.validation == splits.train


def test_own_files_need_no_datasets_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert get_task("SST2").load(write(tmp_path, "SST2", [json.dumps(GOOD)])).train[0].correct == 1


def test_missing_directory(tmp_path):
    with pytest.raises(ValueError, match=r"data_dir .*nowhere: no such directory$"):
        get_task("SST2").load(str(tmp_path / "nowhere"))


def test_missing_file(tmp_path):
    (tmp_path / "SST2").mkdir()
    with pytest.raises(ValueError, match=r"SST2 needs SST2/train.jsonl and SST2/validation.jsonl in data_dir$"):
        get_task("SST2").load(str(tmp_path))


def test_empty_file(tmp_path):
    message = error_of(tmp_path, "SST2", [json.dumps(GOOD)], validation=[" "])
    assert message == "SST2/validation.jsonl: there are no rows in it"


def test_row_number_is_the_line_in_the_file(tmp_path):
    message = error_of(tmp_path, "SST2", [json.dumps(GOOD), "", '{"sentence": "x", label: 1}'])
    assert message.startswith("SST2/train.jsonl, row 3: not valid JSON: Expecting property name")
    assert message.endswith("at column 19")


def test_not_utf8(tmp_path):
    data_dir = write(tmp_path, "SST2", [json.dumps(GOOD)])
    (tmp_path / "SST2" / "train.jsonl").write_bytes(b'{"sentence": "caf\xe9", "label": 1}\n')
    with pytest.raises(ValueError, match=r"train.jsonl: not UTF-8 text; save the file as UTF-8$"):
        get_task("SST2").load(data_dir)


@pytest.mark.parametrize(
    ("task", "row", "complaint"),
    [
        ("SST2", ["fine", 1], "a row must be a JSON object with sentence, label, not ['fine', 1]"),
        ("SST2", {"text": "x", "label": 1}, "field 'sentence' is missing; the fields present are: text, label"),
        ("SST2", {}, "field 'sentence' is missing; the fields present are: none"),
        ("SST2", {**GOOD, "sentence": 3}, "field 'sentence' must be a string, not 3"),
        ("SST2", {**GOOD, "label": 2}, "field 'label' must be one of 0, 1, not 2"),
        ("SST2", {**GOOD, "label": -1}, "field 'label' must be one of 0, 1, not -1"),
        ("SST2", {**GOOD, "label": True}, "field 'label' must be one of 0, 1, not True"),
        ("SST2", {**GOOD, "label": "1"}, "field 'label' must be one of 0, 1, not '1'"),
        ("BoolQ", {"passage": "P", "question": "q", "answer": 1}, "field 'answer' must be true or false, not 1"),
        ("Copa", {**COPA, "question": "why"}, "field 'question' must be one of 'cause', 'effect', not 'why'"),
        (
            "ReCoRD",
            {**RECORD, "entities": []},
            "field 'entities' must be a list of at least one entry, each a string, not []",
        ),
        (
            "SQuAD",
            {"title": "T", "context": "C", "question": "Q", "answers": {"text": []}},
            "field 'answers.text' must be a list of at least one entry, each a string, not []",
        ),
        (
            "SQuAD",
            {"title": "T", "context": "C", "question": "Q", "answers": "text"},
            "field 'answers' must be a JSON object with text, not 'text'",
        ),
        (
            "DROP",
            {"passage": "P", "question": "Q", "answers_spans": {"types": ["span"]}},
            "field 'answers_spans.spans' is missing; the fields present are: types",
        ),
    ],
)
def test_damaged_row(tmp_path, task, row, complaint):
    assert error_of(tmp_path, task, [json.dumps(row)]) == f"{task}/train.jsonl, row 1: {complaint}"


def test_hub_rows(monkeypatch):
    asked = []

    def load_dataset(path, config, *, split):
        asked.append((path, config, split))
        return [[GOOD], [{**GOOD, "label": 0}]]

    fake_hub(monkeypatch, load_dataset)
    splits = get_task("SST2").load(None)
    assert asked == [("nyu-mll/glue", "sst2", ["train", "validation"])]
    assert [s.correct for s in (*splits.train, *splits.validation)] == [1, 0]


def test_hub_rows_are_checked_too(monkeypatch):
    fake_hub(monkeypatch, lambda path, config, split: [[GOOD], [GOOD, {**GOOD, "label": -1}]])
    with pytest.raises(ValueError, match=r"^nyu-mll/glue/sst2 validation, row 2: field 'label' must be one of 0, 1"):
        get_task("SST2").load(None)


def test_unreachable_hub_is_one_line(monkeypatch):
    def load_dataset(path, config, *, split):
        raise ConnectionError("Couldn't reach 'google/boolq'\non the Hub")

    fake_hub(monkeypatch, load_dataset)
    with pytest.raises(ValueError) as caught:
        get_task("BoolQ").load(None)
    assert str(caught.value) == (
        "BoolQ: cannot reach google/boolq on the Hugging Face hub (Couldn't reach 'google/boolq' on the Hub); without "
        "the hub, give --data_dir DIR with DIR/BoolQ/train.jsonl and DIR/BoolQ/validation.jsonl"
    )
