"""What holds for every registered task: a new one passes these by its name alone, with rows in fixtures/golden/data."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from justforward.tasks import get_task, names
from justforward.tasks.metrics import METRICS, Prediction, normalize

DATA = Path(__file__).parents[1] / "fixtures" / "golden" / "data"


@pytest.fixture(params=names())
def task(request):
    return get_task(request.param)


@pytest.fixture
def splits(task):
    return task.load(str(DATA))


def test_loads_all_rows(splits):
    assert [s.id for s in splits.train] == list(range(40))
    assert [s.id for s in splits.validation] == list(range(20))


def test_options_follow_the_prompt(task, splits):
    for sample in splits.train + splits.validation:
        prompt = task.prompt(sample)
        answers = sample.candidates or sample.correct
        texts = [task.verbalize(sample, answer) for answer in answers]
        assert prompt
        assert all(text.startswith(prompt) and len(text) > len(prompt) for text in texts)
        assert len(set(texts)) == len(set(answers))


def test_calibration_keeps_the_option_and_drops_the_question(task, splits):
    sample = splits.validation[0]
    if task.generation:
        for calibrate in (task.prompt_sfc, lambda s: task.verbalize_sfc(s, "any")):
            with pytest.raises(ValueError, match=f"{task.name} generates its answers"):
                calibrate(sample)
        return
    for candidate in sample.candidates:
        option = task.verbalize(sample, candidate).removeprefix(task.prompt(sample))
        text = task.verbalize_sfc(sample, candidate)
        assert text.startswith(task.prompt_sfc(sample))
        assert text.endswith(option)
        assert len(text) < len(task.verbalize(sample, candidate))


def test_gold_is_a_right_answer(task, splits):
    for sample in splits.train + splits.validation:
        if task.generation:
            assert task.gold(sample) in task.target(sample)
        else:
            index, target = task.gold_index(sample), task.target(sample)
            assert sample.candidates[index] == task.gold(sample)
            assert index in (target if isinstance(target, tuple) else (target,))


def test_right_answers_score_one_and_wrong_ones_zero(task, splits):
    metric = METRICS.get(task.metric)
    right = task.gold if task.generation else task.gold_index
    # An answer that is an article alone ("The") has no tokens to score.
    scored = [s for s in splits.validation if normalize(str(task.gold(s)))]
    assert len(scored) >= 19
    assert metric([Prediction(right(s), task.target(s)) for s in scored]) == 1.0
    wrong = "zzz" if task.generation else -1
    assert metric([Prediction(wrong, task.target(s)) for s in splits.validation]) == 0.0


def test_texts_are_a_function_of_the_declared_fields(task, splits):
    for sample in splits.validation:
        bare = task.sample({name: sample.data[name] for name in task.fields}, sample.id)
        assert task.verbalize(bare, task.gold(bare)) == task.verbalize(sample, task.gold(sample))


def test_every_declared_field_is_checked(task, tmp_path):
    lines = (DATA / task.name / "train.jsonl").read_text(encoding="utf-8").splitlines()[:3]
    folder = tmp_path / task.name
    folder.mkdir()
    (folder / "validation.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for path, damaged in damages(task.fields, json.loads(lines[1])):
        (folder / "train.jsonl").write_text("\n".join([lines[0], json.dumps(damaged), lines[2]]), encoding="utf-8")
        with pytest.raises(ValueError) as caught:
            task.load(str(tmp_path))
        message = str(caught.value)
        assert message.startswith(f"{folder / 'train.jsonl'}, row 2: field '{path}' ")
        assert "\n" not in message


def damages(fields, row, parent=()):
    """(path, row with that field missing or wrong), for every field at every depth."""
    for name, wanted in fields.items():
        path = (*parent, name)
        if isinstance(wanted, Mapping):
            yield from damages(wanted, row, path)
            wrong = ["text"]
        elif isinstance(wanted, tuple):
            wrong = [-1, "none of them", None]
        elif isinstance(wanted, list):
            wrong = [[], [7], "text", None]
        else:
            wrong = [7, ["text"], None]
        for value in ["missing", *wrong]:
            damaged = copy.deepcopy(row)
            holder = damaged
            for step in parent:
                holder = holder[step]
            del holder[name]
            if value != "missing":
                holder[name] = value
            yield ".".join(path), damaged


def test_declaration_is_read_in_a_glance(task):
    module = Path(__file__).parents[2] / "src" / "justforward" / "tasks" / f"{task.name.lower()}.py"
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 60
