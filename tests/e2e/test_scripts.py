"""icl.sh and mezo.sh: the command that each environment produces, by DRY_RUN=1, and that run.py accepts it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from justforward.arguments import parse

ROOT = Path(__file__).parents[2]
TASKS = ("SST2", "RTE", "CB", "BoolQ", "WSC", "WIC", "MultiRC", "Copa", "ReCoRD", "SQuAD", "DROP")
SMALL = {"CB", "Copa", "WSC"}
WITHOUT_CLASSIFICATION = {"Copa", "ReCoRD", "SQuAD", "DROP"}
MODES = {
    "ft": [],
    "prefix": ["--prefix_tuning", "--num_prefix", "5", "--no_reparam", "--prefix_init_by_real_act"],
    "lora": ["--lora"],
}

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are written for bash")


def run_script(script, *words, **environment):
    names = ("PATH", "HOME")
    env = {name: os.environ[name] for name in names if name in os.environ} | environment
    return subprocess.run(["bash", script, *words], cwd=ROOT, env=env, capture_output=True, text=True)


def command(usage):
    """The run.py arguments that a documented line 'NAME=value ... bash script.sh words' produces."""
    before, after = usage.split("bash ")
    environment = dict(pair.split("=", 1) for pair in before.split())
    script, *words = shlex.split(after)
    ran = run_script(script, *words, DRY_RUN="1", **environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    program, run_py, *arguments = shlex.split(ran.stdout)
    assert (program, run_py) == ("python", str(ROOT / "run.py"))
    return arguments


def mezo_arguments(task, mode, *, model, lr, eps):
    """What mezo.sh must pass, written out from the documentation."""
    tag = f"mezo-{mode}-20000-16-{lr}-{eps}-0"
    return [
        *["--model_name", model, "--task_name", task],
        *["--output_dir", f"result/{task}-{model.split('/')[-1]}-{tag}", "--tag", tag],
        *["--train_set_seed", "0", "--seed", "0"],
        *["--num_train", "1000", "--num_dev", "100" if task in SMALL else "500", "--num_eval", "1000"],
        *["--trainer", "zo", "--load_float16", "--learning_rate", lr, "--zo_eps", eps],
        *["--lr_scheduler_type", "constant", "--per_device_train_batch_size", "16"],
        *["--max_steps", "20000", "--logging_steps", "10"],
        *["--eval_strategy", "steps", "--eval_steps", "4000", "--save_strategy", "steps", "--save_steps", "4000"],
        *["--save_total_limit", "1", "--load_best_model_at_end"],
        *MODES[mode],
        *([] if task in WITHOUT_CLASSIFICATION else ["--train_as_classification"]),
    ]


def icl_arguments(task, model):
    return [
        *["--model_name", model, "--task_name", task, "--output_dir", "result/tmp", "--tag", "icl"],
        *["--num_train", "32", "--num_eval", "1000", "--load_float16", "--verbose"],
    ]


@pytest.mark.parametrize("task", TASKS)
def test_icl(task):
    arguments = command(f"TASK={task} bash icl.sh")
    assert arguments == icl_arguments(task, "facebook/opt-13b")
    assert parse(arguments).job.num_train == 32


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS)
def test_mezo(task, mode):
    arguments = command(f"TASK={task} MODE={mode} bash mezo.sh")
    assert arguments == mezo_arguments(task, mode, model="facebook/opt-1.3b", lr="1e-5", eps="1e-3")
    assert parse(arguments).job.trainer == "zo"


OPT = "facebook/opt-13b"
NON_DIFF = ["--non_diff", "--evaluation_strategy", "no", "--save_strategy", "no", "--save_model"]
DOCUMENTED = {
    f"MODEL={OPT} TASK=SST2 bash icl.sh --num_train 0": [*icl_arguments("SST2", OPT), "--num_train", "0"],
    f"MODEL={OPT} TASK=SST2 bash icl.sh": icl_arguments("SST2", OPT),
    f"MODEL={OPT} TASK=SST2 MODE=ft LR=1e-7 EPS=1e-3 bash mezo.sh": mezo_arguments(
        "SST2", "ft", model=OPT, lr="1e-7", eps="1e-3"
    ),
    f"MODEL={OPT} TASK=SST2 MODE=prefix LR=1e-3 EPS=1e-1 bash mezo.sh": mezo_arguments(
        "SST2", "prefix", model=OPT, lr="1e-3", eps="1e-1"
    ),
    f"MODEL={OPT} TASK=SST2 MODE=lora LR=5e-5 EPS=1e-2 bash mezo.sh": mezo_arguments(
        "SST2", "lora", model=OPT, lr="5e-5", eps="1e-2"
    ),
    f"MODEL={OPT} TASK=SQuAD MODE=prefix LR=1e-2 EPS=1e-1 bash mezo.sh {' '.join(NON_DIFF)}": [
        *mezo_arguments("SQuAD", "prefix", model=OPT, lr="1e-2", eps="1e-1"),
        *NON_DIFF,
    ],
}


@pytest.mark.parametrize("usage", DOCUMENTED)
def test_documented_usage(usage):
    arguments = command(usage)
    assert arguments == DOCUMENTED[usage]
    parse(arguments)


def test_further_arguments_win():
    parsed = parse(command(f"TASK=SQuAD bash mezo.sh {' '.join(NON_DIFF)}"))
    assert parsed.job.non_diff
    assert parsed.training_kwargs["eval_strategy"] == "no"
    assert parse(command("TASK=SST2 bash icl.sh --num_train 0")).job.num_train == 0


def test_every_variable_of_mezo():
    usage = (
        "TASK=RTE MODEL=/models/my-opt/ MODE=lora LR=3e-5 EPS=1e-2 BS=4 STEPS=50 EVAL_STEPS=25 SEED=7 TRAIN=40 DEV=20 "
        "EVAL=60 bash mezo.sh"
    )
    parsed = parse(command(usage))
    job, training = parsed.job, parsed.training_kwargs
    assert (job.model_name, job.train_set_seed, training["seed"]) == ("/models/my-opt/", 7, 7)
    assert (job.num_train, job.num_dev, job.num_eval) == (40, 20, 60)
    assert (job.zo_eps, job.lora, job.dtype) == (0.01, True, "float16")
    assert job.tag == "mezo-lora-50-4-3e-5-1e-2-7"
    assert training["output_dir"] == "result/RTE-my-opt-mezo-lora-50-4-3e-5-1e-2-7"
    assert (training["learning_rate"], training["max_steps"]) == (3e-5, 50)
    assert training["per_device_train_batch_size"] == 4
    assert (training["eval_steps"], training["save_steps"]) == (25, 25)
    assert parse(command("TASK=CB DEV=30 bash mezo.sh")).job.num_dev == 30
    assert parse(command("TASK=RTE TAG=mine bash mezo.sh")).training_kwargs["output_dir"] == "result/RTE-opt-1.3b-mine"


def test_words_reach_run_py_unbroken(tmp_path):
    """Spaces, quotes and shell characters in a value: the printed command and the executed one agree."""
    words = ["--tag", "two words; $HOME 'x' *"]
    recorder = tmp_path / "python with a space"
    recorder.write_text(f'#!{sys.executable}\nimport sys\nsys.stderr.write("\\0".join(sys.argv[1:]))\n')
    recorder.chmod(0o755)
    ran = run_script("icl.sh", *words, TASK="SST2", MODEL="my models/opt", PYTHON=str(recorder))
    assert ran.stderr.split("\0") == [str(ROOT / "run.py"), *icl_arguments("SST2", "my models/opt"), *words]
    assert shlex.split(ran.stdout) == [str(recorder), *ran.stderr.split("\0")]


@pytest.mark.parametrize("script", ["icl.sh", "mezo.sh"])
def test_without_a_task(script):
    ran = run_script(script)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"{script}: error: TASK is not set; for example: TASK=SST2 bash {script}\n"


def test_unknown_mode():
    ran = run_script("mezo.sh", TASK="SST2", MODE="head")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "mezo.sh: error: MODE is ft, prefix or lora, not 'head'\n"


def test_a_mistake_shows_as_run_pys_one_line():
    ran = run_script("icl.sh", "--num_trian", "4", TASK="SST2", PYTHON=sys.executable)
    assert ran.returncode == 2
    assert ran.stderr == "justforward: error: unknown argument '--num_trian' (did you mean '--num_train'?)\n"
