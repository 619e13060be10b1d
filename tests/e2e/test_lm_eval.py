"""Tasks of lm_eval: numbers and tokens are those of lm_eval itself, they train, and what is not taken is one line."""

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from support.golden import MODEL
from support.making import byte_level, fast, random_llama
from tokenizers.processors import TemplateProcessing
from transformers import GPT2Config, GPT2LMHeadModel

from justforward.commands.cli import main
from justforward.models.loading import load, load_tokenizer
from justforward.scoring import ScoringEngine
from justforward.scoring.chat import encoder_of
from justforward.scoring.evaluation import Evaluator
from justforward.tasks import find_task

PAGE = (Path(__file__).parents[2] / "docs" / "lm-eval.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: title=\"(\S+)\")?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
QUIET = ["--use_cpu", "--disable_tqdm", "--report_to", "none"]

ROWS = [
    {"q": "red or blue", "ends": ["a sky ", "blood", " the sea at night"], "right": 1, "many": [0, 1], "label": 0},
    {"q": " two\tor four", "ends": ["legs", "wheels\n"], "right": 0, "many": [1], "label": 1},
    {"q": "up, or dowń?", "ends": ["the hill", "a very long way down", "no"], "right": 2, "many": [2], "label": 1},
    {"q": "left ", "ends": ["right", "wrong"], "right": 1, "many": [0], "label": 0},
]
COMMON = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: rows.jsonl, test: rows.jsonl}}}}
training_split: train
test_split: test
"""
ACC = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}"
TASKS = {
    "one_token": """
        output_type: multiple_choice
        description: "Say x or y.\\n\\n"
        doc_to_text: "{{q}} is"
        doc_to_choice: ["x", "y"]
        doc_to_target: label
        """
    + ACC
    + "]",
    "choice": """
        output_type: multiple_choice
        doc_to_text: "Q: {{q}}\\nA: "
        doc_to_choice: ends
        doc_to_target: many
        target_delimiter: ""
        """
    + ACC
    + ", {metric: acc_norm, aggregation: mean, higher_is_better: true}]",
    "contexts": """
        output_type: multiple_choice
        doc_to_text: right
        doc_to_choice: ends
        doc_to_target: q
        """
    + ACC
    + "]",
    "writes": """
        output_type: generate_until
        doc_to_text: "{{q}}:"
        doc_to_target: "{{ends[0]}}"
        generation_kwargs: {until: ["e", "\\n"], max_gen_toks: 6}
        filter_list:
          - {name: letters, filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]}
          - {name: none, filter: [{function: take_first}]}
        metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
        fewshot_config: {sampler: first_n}
        """,
}


@pytest.fixture(scope="session")
def harness():
    return pytest.importorskip("lm_eval", reason="its tasks need it: pip install 'justforward[lm_eval]'")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("tasks").mkdir()
    for name, text in TASKS.items():
        write(name, text)
    return tmp_path


def write(name, text, **replaced):
    lines = COMMON.format(name=name) + re.sub("^        ", "", text, flags=re.MULTILINE)
    for key, value in replaced.items():
        lines = re.sub(f"^{key}:.*\n?", "", lines, flags=re.MULTILINE) + (f"\n{key}: {value}\n" if value else "")
    Path(f"tasks/{name}.yaml").write_text(lines)


def make(family):
    """A tiny model of the family; a Llama's rows begin with "<s>", those of GPT-2 with nothing."""
    letters = byte_level(["is", " is", " blood", ":"])
    if family == "llama":
        letters.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])  # type: ignore[assignment]
        random_llama("model", fast(letters))
        return
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128}
    config = GPT2Config(vocab_size=letters.get_vocab_size(), bos_token_id=1, eos_token_id=1, **sizes)
    GPT2LMHeadModel(config).save_pretrained("model")
    fast(letters, bos_token="</s>").save_pretrained("model")


def by_lm_eval(harness, model, names):
    """lm_eval's results and samples, zero-shot."""
    lm = importlib.import_module("lm_eval.models.huggingface").HFLM
    return harness.simple_evaluate(
        lm(pretrained=model, device="cpu", dtype="float32", batch_size=4),
        tasks=names,
        task_manager=manager(include_path="tasks"),
        num_fewshot=0,
        bootstrap_iters=0,
    )


def manager(**given):
    return importlib.import_module("lm_eval.tasks").TaskManager(include_defaults=False, **given)


def assert_equal(told, name, metrics, outcomes):
    theirs = {key: value for key, value in told["results"][name].items() if "," in key and "stderr" not in key}
    assert metrics == {key.removesuffix(",none"): float(value) for key, value in theirs.items()}
    samples = [sample for sample in told["samples"][name] if sample["filter"] == "none"]
    for outcome, sample in zip(outcomes, samples, strict=True):
        if outcome["scores"] is None:
            assert outcome["predicted"] == sample["resps"][0][0]
        else:
            assert outcome["scores"] == pytest.approx([float(one[0]) for one in sample["filtered_resps"]], abs=1e-4)


def test_results_are_those_of_lm_eval(harness):
    told = by_lm_eval(harness, MODEL, list(TASKS))
    for name in TASKS:
        words = ["--task_name", f"lm_eval:tasks/{name}.yaml", "--model_name", MODEL, "--bos_token_id", "2"]
        assert main([*words, "--result_file", "r.json", *QUIET]) == 0
        result = json.loads(Path("r.json").read_text())
        metrics = {key: value for key, value in result.items() if key.startswith(("acc", "exact_match"))}
        assert_equal(told, name, metrics, map(json.loads, Path("r-predictions.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_scores_are_those_of_lm_eval(harness, family):
    make(family)
    names = ["one_token", "choice", "contexts"]
    told, loaded = by_lm_eval(harness, "model", names), load("model")
    for name in names:
        task = find_task(f"lm_eval:tasks/{name}.yaml")
        samples = task.load(None).validation
        evaluator = Evaluator(encoder_of(loaded.tokenizer, task, max_length=128), ScoringEngine(loaded.model))
        outcomes = evaluator.evaluate(samples)
        assert_equal(told, name, evaluator.metrics(samples, outcomes), (outcome.to_json() for outcome in outcomes))


def test_demonstrations_are_shown_as_lm_eval_shows_them(harness):
    tokenizer, _, _ = load_tokenizer(MODEL, max_length=512)
    for name in ("one_token", "writes", "contexts"):
        write(name, TASKS[name], fewshot_config="{sampler: first_n}")
        task = find_task(f"lm_eval:tasks/{name}.yaml")
        source = manager().load(f"tasks/{name}.yaml")["tasks"][name]
        texts = source.fewshot_context(source.eval_docs[3], num_fewshot=2)
        samples = task.load(None).validation
        encoder = encoder_of(tokenizer, task, max_length=512)
        if name == "writes":
            assert encoder.generation(samples[3], samples[:2]) == tuple(tokenizer.encode(texts))
            assert encoder.gold(samples[1]).tokens == tuple(tokenizer.encode(" two\tor four: legse"))
        else:
            row = encoder.candidates(samples[3], samples[:2])[0]
            read = str(tokenizer.decode(list(row.tokens[1:])))
            assert read.startswith(texts if isinstance(texts, str) else texts[0])


def test_a_task_is_checked_and_trains(harness, capsys):
    write("choice", TASKS["choice"], doc_to_target="right")
    task = "lm_eval:tasks/choice"
    assert main(["task", "check", task, "--model_name", MODEL, "--num", "1"]) == 0
    shown = capsys.readouterr().out
    assert "lm_eval:choice: multiple choice, metric acc, acc_norm\n4 rows for training, 4 for validation" in shown
    assert "  | Q: red or blue\n  | A: \n    'a sky '\n  * 'blood'\n" in shown
    words = ["--task_name", task, "--model_name", MODEL, "--trainer", "zo", "--train_as_classification"]
    words += ["--num_train", "3", "--num_dev", "1", "--train_set_seed", "0", "--max_steps", "2", "--output_dir", "out"]
    words += ["--learning_rate", "1e-4", "--save_strategy", "steps", "--save_steps", "1", *QUIET]
    assert main(words) == 0
    (written,) = Path("result").glob("lm_eval-choice-tiny-opt-4k*trainset0.json")
    result = json.loads(written.read_text())
    assert result["train_steps"] == 2
    assert {"acc", "acc_norm", "dev_acc"} <= result.keys()
    Path("rows.jsonl").write_text(Path("rows.jsonl").read_text().replace("blood", "a rose"))
    capsys.readouterr()
    assert main(words) == 2
    assert "holds checkpoints of another job" in capsys.readouterr().err


WRONG = {
    "kind": ({"output_type": "loglikelihood"}, "has output_type loglikelihood, and tasks of multiple_choice and"),
    "code": ({"unsafe_code": "true"}, "runs the code that a model writes"),
    "images": ({"doc_to_image": "q"}, "shows images or sounds"),
    "repeats": ({"repeats": "3"}, "answers every row 3 times (repeats)"),
    "metric": ({"metric_list": "[{metric: acc_mutual_info}]"}, "lists the metric acc_mutual_info"),
    "answer": ({"doc_to_target": "q"}, "split 'test', row 1: its right answer 'red or blue' is none of its 3 choices"),
    "field": ({"doc_to_text": "'{{quest}}'"}, "lm_eval cannot read it (UndefinedError: 'quest' is undefined)"),
    "rows": ({"test_split": "held_out"}, "lm_eval cannot read it (KeyError: 'held_out')"),
    "file": ({"dataset_kwargs": "{data_files: {train: no.jsonl}}"}, "Unable to find"),
    "hub": ({"dataset_path": "owner/data", "dataset_kwargs": ""}, "its rows are on the Hugging Face hub, which cannot"),
    "no name": ({"task": ""}, "the file has no key 'task'"),
    "group": ({"task": "[a, b, c, d, e, f]", "group": "g"}, "is a group of tasks: name one of them (a, b, c, d, e and"),
    "yaml": ({"doc_to_text": "'"}, "not YAML"),
}


@pytest.mark.parametrize(("changes", "says"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_one_line(harness, capsys, changes, says):
    write("choice", TASKS["choice"], **changes)
    refused(capsys, ["--task_name", "lm_eval:tasks/choice.yaml"], says)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ('{until: ["."], do_sample: true}', "draws its answers at random"),
        ('{until: ["."], num_beams: 4}', "generates with num_beams"),
        ("{until: []}", "has no text in generation_kwargs.until"),
    ],
)
def test_generation_that_is_not_taken_is_one_line(harness, capsys, how, says):
    write("writes", TASKS["writes"], generation_kwargs=how)
    refused(capsys, ["--task_name", "lm_eval:tasks/writes.yaml"], says)


def test_what_a_command_cannot_ask_is_one_line(harness, capsys):
    asked = ["--task_name", "lm_eval:tasks/writes.yaml"]
    refused(capsys, [*asked, "--max_new_tokens", "9"], "--max_new_tokens: how lm_eval:tasks/writes.yaml generates")
    refused(capsys, [*asked, "--chat_template"], "--chat_template: lm_eval:writes is asked as its harness asks it")
    write("writes", TASKS["writes"], training_split="")
    refused(capsys, [*asked, "--num_train", "2"], "the task has no rows to train on or to show")
    refused(capsys, ["--task_name", "lm_eval:tasks/nothing"], "lm_eval knows no task 'nothing'")
    refused(capsys, ["--task_name", "lm_eval:tasks/chioce"], "(did you mean 'choice'?)")
    refused(capsys, ["--task_name", "lm_eval:tasks/"], "the folder holds 4 tasks: name one of them")
    refused(capsys, ["--task_name", "lm_eval:no.yaml"], "there is no such file")


def test_without_lm_eval_the_line_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(capsys, ["--task_name", "lm_eval:arc_easy"], "pip install 'justforward[lm_eval]'")


def refused(capsys, words, says):
    capsys.readouterr()
    assert main([*words, "--model_name", MODEL, *QUIET]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("justforward: error")]
    assert says in line


def test_the_page_runs(harness, capsys):
    for _, title, text in BLOCKS:
        if title:
            Path(title).write_text(text)
    commands = [block for language, _, block in BLOCKS if language == "sh"]
    for words in (shlex.split(line) for block in commands for line in block.replace("\\\n", " ").splitlines()):
        more = ["--model_name", MODEL, *([] if words[1] == "task" else QUIET)]
        small = ["--max_steps", "2", "--save_strategy", "no"] if "--trainer" in words else []
        assert main([*words[1:], *more, *small]) == 0
