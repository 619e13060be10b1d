"""Every prompt and option text of the original program, to the character."""

import json
from pathlib import Path

import pytest

from justforward.tasks import get_task, names

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
TASKS = json.loads((GOLDEN / "templates.json").read_text(encoding="utf-8"))["tasks"]


def test_every_task_is_recorded():
    assert sorted(TASKS) == names()


@pytest.mark.parametrize("name", TASKS)
def test_task_settings(name):
    task, recorded = get_task(name), TASKS[name]
    assert (task.separator, task.generation, task.metric) == (
        recorded["separator"],
        recorded["generation"],
        recorded["metric"],
    )


@pytest.mark.parametrize("name", TASKS)
def test_texts(name):
    task = get_task(name)
    splits = task.load(str(GOLDEN / "data"))
    for recorded in TASKS[name]["rows"]:
        sample = getattr(splits, recorded["split"])[recorded["row"]]
        ours = {
            "candidates": None if sample.candidates is None else list(sample.candidates),
            "correct": list(sample.correct) if isinstance(sample.correct, tuple) else sample.correct,
            "encode": task.prompt(sample),
            "verbalize": [task.verbalize(sample, c) for c in sample.candidates or (task.gold(sample),)],
            "verbalize_correct": task.verbalize(sample, task.gold(sample)),
        }
        if not task.generation:
            ours["encode_sfc"] = task.prompt_sfc(sample)
            ours["verbalize_sfc"] = [task.verbalize_sfc(sample, c) for c in sample.candidates or ()]
        assert ours == {key: recorded[key] for key in recorded if key not in ("split", "row", "id")}
        # The original numbers the samples of some tasks only.
        assert recorded["id"] in (sample.id, None)
