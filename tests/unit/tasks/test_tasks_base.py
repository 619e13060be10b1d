import subprocess
import sys

import pytest

import justforward.tasks
from justforward.registry import Registry
from justforward.tasks import Task, get_task, names

RECORD_ROW = {"passage": "P\n@highlight\nH", "query": "@placeholder won.", "entities": ["Ann", "Bo"]}


def toy(name):
    return Task(name=name, hub=("toy", None), fields={"label": (0, 1)}, template=lambda row: "", words={0: "n", 1: "y"})


def test_names_are_the_eleven():
    assert names() == sorted(["SST2", "RTE", "CB", "BoolQ", "WSC", "WIC", "MultiRC", "Copa", "ReCoRD", "SQuAD", "DROP"])


def test_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown task 'sst-2' \(did you mean 'SST2'\?\)"):
        get_task("sst-2")


def test_subtask_goes_to_the_declaration_that_takes_one(monkeypatch):
    table = Registry("task")
    table.register("Family")(lambda subtask: toy(f"Family/{subtask}"))
    table.register("Single")(toy("Single"))
    monkeypatch.setattr(justforward.tasks, "TASKS", table)
    assert get_task("Family__two").name == "Family/two"
    assert get_task("Family").name == "Family/None"
    with pytest.raises(ValueError, match="task 'Single' has no subtasks: give task_name as 'Single'"):
        get_task("Single__two")


def test_tasks_need_no_heavy_library():
    code = (
        "import sys, justforward.tasks as t, justforward.tasks.metrics; t.names(); "
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_boolq_question_mark_and_capital():
    boolq = get_task("BoolQ")
    texts = {"is it": "Is it?", "Is It?": "Is It?", "is it? ": "Is it? ?", "élan is": "Élan is?", "": "?"}
    for question, asked in texts.items():
        sample = boolq.sample({"passage": "P.", "question": question, "answer": True}, 0)
        assert boolq.prompt(sample) == f"P. {asked}\n"
        assert boolq.gold(sample) == "Yes"


def test_copa_first_word_loses_its_capital_unless_it_is_i():
    copa = get_task("Copa")
    row = {"premise": "It rained..  ", "choice1": "NASA Met.", "choice2": "I Slept.", "question": "cause", "label": 1}
    sample = copa.sample(row, 0)
    assert copa.verbalize(sample, "NASA Met.") == "It rained. because nasa Met."
    assert copa.verbalize(sample, "I Slept.") == "It rained. because I Slept."
    assert (copa.prompt(sample), copa.prompt_sfc(sample)) == ("It rained. because ", "because")


def test_copa_with_equal_choices_takes_the_first():
    row = {"premise": "P.", "choice1": "A.", "choice2": "A.", "question": "effect", "label": 1}
    copa = get_task("Copa")
    assert copa.target(copa.sample(row, 0)) == 0


def test_record_ignores_answers_that_are_no_entities():
    record = get_task("ReCoRD")
    sample = record.sample({**RECORD_ROW, "answers": ["Cy", "Bo"]}, 3)
    assert sample.correct == ("Bo",)
    assert (record.gold(sample), record.gold_index(sample), record.target(sample)) == ("Bo", 1, (1,))


def test_record_without_a_predictable_answer_still_demonstrates():
    record = get_task("ReCoRD")
    sample = record.sample({**RECORD_ROW, "answers": ["Cy", "Di"]}, 3)
    assert record.target(sample) == ()
    assert record.verbalize(sample, record.gold(sample)) == "P\n- H\n- Cy won."
    with pytest.raises(ValueError, match="ReCoRD sample 3: the right answer 'Cy' is not among the options"):
        record.gold_index(sample)


def test_record_counts_an_entity_listed_twice_as_right_both_times():
    record = get_task("ReCoRD")
    sample = record.sample({**RECORD_ROW, "entities": ["Bo", "Ann", "Bo"], "answers": ["Bo"]}, 0)
    assert record.target(sample) == (0, 2)


def test_generation_has_no_options():
    drop = get_task("DROP")
    sample = drop.sample({"passage": "P", "question": " Q ", "answers_spans": {"spans": ["7", "8"]}}, 0)
    assert drop.verbalize(sample, drop.gold(sample)) == "Passage: P\nQuestion: Q\nAnswer: 7\n"
    with pytest.raises(ValueError, match="DROP has no fixed options to classify"):
        drop.gold_index(sample)
