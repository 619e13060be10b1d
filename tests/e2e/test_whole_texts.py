"""Plain texts and conversations: what of them is scored, that every trainer trains on them, and mistakes."""

import copy
import json
import math
import random
from typing import Any

import pytest
import torch
from support.golden import MODEL
from transformers import AutoModelForCausalLM, AutoTokenizer

from justforward.commands.cli import main
from justforward.results.places import predictions
from justforward.scoring.chat import ChatEncoder, encoder_of
from justforward.tasks import find_task

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["the", "cat", "dog", "sees", "a", "bird", "and", "runs", "to", "house", "with", "ball", "red", "blue"]
TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two words"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four five six"},
]


def words(chance, count):
    return " ".join(chance.choice(WORDS) for _ in range(count))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def made(folder, row, text, count=12):
    """A task file with such rows."""
    chance = random.Random(0)
    for name in ("train", "validation"):
        write(folder / f"{name}.jsonl", [row(chance, i) for i in range(count)])
    path = folder / "task.toml"
    path.write_text(f'name = "own"\ntrain = "train.jsonl"\nvalidation = "validation.jsonl"\n{text}\n')
    return path


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The tiny model with a tokenizer that has a chat template."""
    folder = tmp_path_factory.mktemp("chat-model")
    AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")
    tokenizer.save_pretrained(folder)
    return str(folder)


def text_row(chance, i):
    return {"text": words(chance, 5 + i)}


def chat_row(chance, i):
    turns = copy.deepcopy(TURNS)
    turns[1]["content"] = words(chance, 4)
    return {"messages": turns}


def run(model, task, tmp_path, name, *more):
    out = ["--task_file", str(task), "--model_name", model, "--use_cpu", "--disable_tqdm", "--report_to", "none"]
    out += ["--output_dir", str(tmp_path / name), "--result_file", str(tmp_path / f"{name}.json"), *more]
    assert main(out) == 0
    return json.loads((tmp_path / f"{name}.json").read_text())


def test_perplexity_is_that_of_the_model(tmp_path):
    task = made(tmp_path, text_row, 'text = "text"')
    told = run(MODEL, task, tmp_path, "x")
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    encoder = encoder_of(AutoTokenizer.from_pretrained(MODEL), find_task("", str(task)), bos_token_id=0)
    total, count = 0.0, 0
    for sample in find_task("", str(task)).load(None).validation:
        (row,) = encoder.whole(sample)
        ids = torch.tensor([row.tokens])
        with torch.no_grad():
            logs = model(ids).logits[0, :-1].log_softmax(-1)
        total -= float(logs.gather(1, ids[0, 1:, None]).sum())
        count += len(row.tokens) - 1
        assert row.start == 1
    assert told["loss"] == pytest.approx(total / count, abs=1e-5)
    assert told["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


@pytest.mark.parametrize("kind", ["text", "conversation"])
@pytest.mark.parametrize(
    "how",
    [
        ["--trainer", "zo", "--learning_rate", "1e-3"],
        ["--trainer", "zo", "--zo_method", "eggroll", "--learning_rate", "1e-3"],
        ["--trainer", "guided", "--train_blocks", "1:"],
        ["--trainer", "regular", "--learning_rate", "1e-3"],
    ],
    ids=["mezo", "eggroll", "guided", "regular"],
)
def test_every_trainer_trains_on_them(kind, how, chat_model, tmp_path):
    row, text = (text_row, 'text = "text"') if kind == "text" else (chat_row, 'messages = "messages"')
    task = made(tmp_path, row, text)
    training = ["--num_train", "12", "--train_set_seed", "0", "--max_steps", "6", "--per_device_train_batch_size", "6"]
    before = run(chat_model, task, tmp_path, "before")
    after = run(chat_model, task, tmp_path, "after", *how, *training)
    assert after["loss"] < before["loss"] + (0.05 if how[1] == "zo" else 0)


def scored_texts(tokenizer, rows):
    return [tokenizer.decode(row.tokens[row.start :]).strip() for row in rows]


def test_the_assistants_turns_are_scored_and_what_max_length_cuts_is_not(chat_model, tmp_path):
    task = find_task("", str(made(tmp_path, lambda chance, i: {"messages": TURNS}, 'messages = "messages"')))
    tokenizer, sample = AutoTokenizer.from_pretrained(chat_model), task.load(None).train[0]
    whole = encoder_of(tokenizer, task).whole(sample)
    assert scored_texts(tokenizer, whole) == ["two words</s>", "four five six</s>"]
    first, second = whole
    assert second.tokens[: len(first.tokens)] == first.tokens, "the second is behind the first"
    cut = encoder_of(tokenizer, task, max_length=len(second.tokens) - 2).whole(sample)
    assert cut[0] == first
    assert cut[1].tokens == second.tokens[:-2]
    assert cut[1].start == second.start
    assert encoder_of(tokenizer, task, max_length=len(first.tokens) + 2).whole(sample) == [first]
    with pytest.raises(ValueError, match="no turn of the assistant lies in the first 3 tokens"):
        encoder_of(tokenizer, task, max_length=3).whole(sample)


def test_a_loss_on_all_turns_scores_everything(chat_model, tmp_path):
    task = find_task("", str(made(tmp_path, lambda c, i: {"messages": TURNS}, 'messages = "messages"\nloss = "all"')))
    (row,) = encoder_of(AutoTokenizer.from_pretrained(chat_model), task).whole(task.load(None).train[0])
    assert row.start == 1


def test_long_texts_lose_their_end_or_become_pieces(tmp_path):
    row = {"text": " ".join(WORDS)}
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for long_texts, pieces in (("cut", 1), ("split", 3)):
        path = made(tmp_path, lambda chance, i: row, f'text = "text"\nlong_texts = "{long_texts}"')
        task = find_task("", str(path))
        whole = encoder_of(tokenizer, task).whole(task.load(None).train[0])[0].tokens
        size = -(-(len(whole) - 1) // 3) + 1
        rows = encoder_of(tokenizer, task, max_length=size).whole(task.load(None).train[0])
        assert len(rows) == pieces
        assert all(len(one.tokens) <= size and one.tokens[0] == whole[0] for one in rows)
        behind = [token for one in rows for token in one.tokens[1:]]
        assert behind == list(whole[1:])[: len(behind)]
        assert (len(behind) == len(whole) - 1) == (long_texts == "split")


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            'messages = "conversations"',
        ),
        ({"q": "a", "more": "", "out": "b"}, 'user = "q"\ninput = "more"\nassistant = "out"'),
        ({"prompt": "a", "completion": "b"}, 'user = "prompt"\nassistant = "completion"'),
    ],
)
def test_other_spellings_are_the_same_turns(row, text, tmp_path):
    task = find_task("", str(made(tmp_path, lambda chance, i: row, text)))
    assert task.turns is not None
    turns = task.turns(task.load(None).train[0].data)
    assert turns == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


ONE = {"messages": TURNS}


@pytest.mark.parametrize(
    ("row", "text", "more", "line"),
    [
        ({"messages": []}, 'messages = "messages"', [], "field 'messages' must be"),
        ({"messages": [{"role": "user", "content": "a"}]}, 'messages = "messages"', [], "has no turn of the assistant"),
        (
            {"messages": [{"role": "usr", "content": "a"}]},
            'messages = "messages"',
            [],
            "unknown role 'usr' (did you mean",
        ),
        ({"messages": [{"role": "user"}]}, 'messages = "messages"', [], "turn 1: field 'content' is missing"),
        ({"messages": "a"}, 'messages = "messages"', [], "field 'messages' must be"),
        ({"text": ""}, 'text = "text"', [], "field 'text' is empty"),
        ({"texts": "a"}, 'text = "text"', [], "field 'text' is missing (did you mean 'texts'?)"),
        ({"text": "a b"}, 'text = "text"\nprompt = "{text}"', [], "prompt: is for classification and multiple choice"),
        ({"text": "a b"}, 'text = "text"\nloss = "all"', [], "loss: is for conversation and question and answer"),
        ({"text": "a b"}, 'text = "text"\nlong_texts = "wrap"', [], "long_texts: must be 'cut' or 'split'"),
        ({"text": "a b"}, 'text = "text"\nmessages = "m"', [], "what is to be answered?"),
        ({"text": "a b"}, 'user = "text"', [], "what is to be answered?"),
        (ONE, 'messages = "messages"', [], "the tokenizer of this model has none"),
        (ONE, 'messages = "messages"\nloss = "some"', [], "loss: must be 'assistant' or 'all'"),
        ({"text": "a b"}, 'text = "text"', ["--chat_template"], "is of plain texts, which are no turns"),
        ({"text": "a b"}, 'text = "text"', ["--num_train", "2"], "whole texts, which take no demonstrations"),
        ({"text": "a b"}, 'text = "text"', ["--sfc"], "--sfc is for tasks with answers"),
        (
            {"text": "a b"},
            'text = "text"',
            ["--trainer", "zo", "--num_train", "2", "--train_set_seed", "0", "--train_as_classification"],
            "--train_as_classification is for tasks with answers",
        ),
    ],
)
def test_mistakes_are_one_line(row, text, more, line, tmp_path, capsys):
    task = made(tmp_path, lambda chance, i: row, text)
    words = ["--task_file", str(task), "--model_name", MODEL, "--use_cpu", "--result_file", str(tmp_path / "x.json")]
    assert main([*words, "--output_dir", str(tmp_path / "o"), *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in error
    assert not (tmp_path / "x.json").exists()


def test_a_metric_judges_the_last_answer_that_is_generated(chat_model, tmp_path):
    task = made(tmp_path, chat_row, 'messages = "messages"\nmetric = "f1"', count=3)
    told = run(chat_model, task, tmp_path, "x", "--max_new_tokens", "6")
    assert {"loss", "perplexity", "f1", "em"} <= told.keys()
    rows = [json.loads(line) for line in predictions(tmp_path / "x.json").read_text().splitlines()]
    model: Any = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    encoder = encoder_of(tokenizer, find_task("", str(task)), bos_token_id=0)
    sample = find_task("", str(task)).load(None).validation[rows[0]["id"]]
    assert isinstance(encoder, ChatEncoder)
    prompt, answer = encoder.last_answer(sample)
    assert tokenizer.decode(prompt).endswith("three</s>\n<s>assistant\n")
    assert (rows[0]["correct"], answer) == ([answer], TURNS[-1]["content"])
    written = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=2)[
        0, len(prompt) :
    ]
    assert rows[0]["predicted"] == tokenizer.decode(written, skip_special_tokens=True).strip()


def test_a_metric_of_choices_is_none_of_texts(tmp_path, capsys):
    for text, row in (
        ('messages = "messages"\nmetric = "accuracy"', chat_row),
        ('text = "text"\nmetric = "f1"', text_row),
    ):
        task = made(tmp_path, row, text)
        assert main(["--task_file", str(task), "--model_name", MODEL, "--use_cpu"]) == 2
        assert "metric" in capsys.readouterr().err.strip().splitlines()[-1]
