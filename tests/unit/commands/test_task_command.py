"""`justforward task`: the list, the report, and what it refuses."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.golden import DATA, MODEL

from justforward.commands.cli import main
from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import get_task, names


def printed(capsys, *words):
    assert main(["task", *words]) == 0
    return capsys.readouterr().out


def test_list_has_a_line_per_task(capsys):
    lines = printed(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert "Copa     multiple choice  accuracy  aps/super_glue/copa" in lines


@pytest.mark.parametrize("task", names())
def test_every_task_is_described(task, capsys):
    out = printed(capsys, "check", task, "--data_dir", DATA, "--num", "2")
    assert "40 rows for training, 20 for validation" in out
    assert out.count("\ntraining row ") == 2
    assert len(re.findall(r"^  \* ", out, re.MULTILINE)) >= 2
    assert re.search(r"^always .* %$", out, re.MULTILINE)


def test_balance_and_majority(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("x,y\n" + "q,0\n" * 3 + "q,1\n")
    Path("b.csv").write_text("x,y\n" + "q,0\n" + "q,1\n" * 4)
    Path("t.toml").write_text(
        'name = "t"\nprompt = "{x}"\nlabel = "y"\ntrain = "a.csv"\nvalidation = "b.csv"\n'
        '[options]\n0 = " no"\n1 = " yes"\n2 = " maybe"\n'
    )
    lines = printed(capsys, "check", "t.toml", "--num", "0").splitlines()[3:]
    assert [line.split() for line in lines] == [
        ["right", "answer", "training", "validation"],
        ["0", "3", "75.0", "%", "1", "20.0", "%"],
        ["1", "1", "25.0", "%", "4", "80.0", "%"],
        ["always", "0", "75.0", "%", "20.0", "%"],
    ]


def test_tokens_are_those_of_a_run(capsys, golden):
    task = get_task("CB")
    splits = task.load(DATA)
    encoder = PromptEncoder(golden.tokenizer, task, bos_token_id=golden.bos_token_id)
    rows = [encoder.candidates(sample) for sample in (*splits.train, *splits.validation)]
    prompts = sorted(row[0].start for row in rows)
    longest = sorted(max(len(r.tokens) for r in row) for row in rows)
    limit = longest[20]
    words = ["--num", "0", "--model_name", MODEL, "--max_length", str(limit)]
    out = printed(capsys, "check", "CB", "--data_dir", DATA, *words)
    (line,) = [line.split() for line in out.splitlines() if line.startswith("prompt ")]
    assert [float(cell) for cell in line[1:]] == [prompts[0], (prompts[29] + prompts[30]) / 2, prompts[-1]]
    too_long = sum(length > limit for length in longest)
    assert 0 < too_long < 60
    assert f"{too_long} of 60 rows are longer than {limit} tokens" in out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({0: "", 1: " x"}, "problem in 2 rows: 0: a candidate adds no tokens to its prompt"),
        ({0: " x", 1: " x "}, "problem in 2 rows: the options 0 and 1 have the same tokens"),
    ],
)
def test_options_without_tokens_of_their_own(words, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text(
        "from justforward.tasks import Task, register\n"
        f"register(Task(name='t', fields={{'label': (0, 1)}}, template=lambda row: 'q', words={words}))\n"
    )
    Path("t").mkdir()
    for split in ("train", "validation"):
        Path(f"t/{split}.jsonl").write_text('{"label": 1}')
    assert main(["task", "check", "t.py", "--data_dir", ".", "--model_name", MODEL]) == 2
    out, err = capsys.readouterr()
    assert problem in out
    assert err == f"justforward: error: t: a problem with the tokens of {MODEL}, as listed above\n"


def test_without_a_model_nothing_heavy_is_loaded():
    code = (
        "import sys; from justforward.commands.cli import main\n"
        f"main(['task', 'check', 'SST2', '--data_dir', {DATA!r}]); main(['task', 'list'])\n"
        "found = {'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules); assert not found, found\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
