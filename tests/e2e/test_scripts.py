"""The scripts: the command that each environment produces, by DRY_RUN=1, and that run.py accepts it."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from justforward.command_line.arguments import parse

ROOT = Path(__file__).parents[2]
TASKS = ("SST2", "RTE", "CB", "BoolQ", "WSC", "WIC", "MultiRC", "Copa", "ReCoRD", "SQuAD", "DROP")
SMALL = {"CB", "Copa", "WSC"}
WITHOUT_CLASSIFICATION = {"Copa", "ReCoRD", "SQuAD", "DROP"}
AT_A_TIME = {"MultiRC": 2, "ReCoRD": 2, "DROP": 1}
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


def command(usage, launcher=("python",)):
    """The run.py arguments that a documented line 'NAME=value ... bash script.sh words' produces."""
    before, after = usage.split("bash ")
    environment = dict(pair.split("=", 1) for pair in before.split())
    script, *words = shlex.split(after)
    ran = run_script(script, *words, DRY_RUN="1", **environment)
    assert (ran.returncode, ran.stderr) == (0, "")
    printed = shlex.split(ran.stdout)
    start = printed.index(str(ROOT / "run.py"))
    assert printed[:start] == list(launcher)
    return printed[start + 1 :]


def torchrun(gpus):
    return ["python", *["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(gpus)]]


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


def finetune_arguments(task, mode, *, model, lr, sharded=False):
    """What finetune.sh and finetune_fsdp.sh must pass, written out from the documentation."""
    tag = f"{'fsdp-' if sharded else ''}{mode}-5-8-{lr}-0"
    fsdp = '{"version": 2, "auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "reshard_after_forward": true}'
    at_a_time = 1 if sharded else AT_A_TIME.get(task, 8)
    return [
        *["--model_name", model, "--task_name", task],
        *["--output_dir", f"result/{task}-{model.split('/')[-1]}-{tag}", "--tag", tag],
        *["--train_set_seed", "0", "--seed", "0"],
        *["--num_train", "1000", "--num_dev", "100" if task in SMALL else "500", "--num_eval", "1000"],
        *["--trainer", "regular"],
        *(["--no_auto_device", "--fsdp", "--fsdp_config", fsdp] if sharded else []),
        *["--fp16", "--learning_rate", lr],
        *["--per_device_train_batch_size", str(at_a_time), "--gradient_accumulation_steps", str(8 // at_a_time)],
        *["--num_train_epochs", "5", "--logging_steps", "10", "--eval_strategy", "epoch", "--save_strategy", "epoch"],
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS)
def test_finetune(task, mode):
    arguments = command(f"TASK={task} MODE={mode} bash finetune.sh")
    assert arguments == finetune_arguments(task, mode, model="facebook/opt-1.3b", lr="1e-5")
    parsed = parse(arguments)
    assert parsed.job.trainer == "regular"
    kwargs = parsed.training_kwargs
    assert kwargs["per_device_train_batch_size"] * kwargs["gradient_accumulation_steps"] == 8


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("task", TASKS)
def test_finetune_fsdp(task, mode):
    arguments = command(f"TASK={task} MODE={mode} NUM_GPU=2 bash finetune_fsdp.sh", torchrun(2))
    assert arguments == finetune_arguments(task, mode, model="facebook/opt-1.3b", lr="1e-5", sharded=True)
    parsed = parse(arguments)
    assert parsed.job.no_auto_device
    assert parsed.training_kwargs["fsdp"] is True


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
    "MODEL=facebook/opt-1.3b TASK=SST2 MODE=lora LR=1e-4 bash finetune.sh": finetune_arguments(
        "SST2", "lora", model="facebook/opt-1.3b", lr="1e-4"
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


def test_documented_usage_of_fsdp():
    arguments = command(f"MODEL={OPT} TASK=SST2 MODE=ft LR=1e-5 NUM_GPU=4 bash finetune_fsdp.sh", torchrun(4))
    assert arguments == finetune_arguments("SST2", "ft", model=OPT, lr="1e-5", sharded=True)


@pytest.mark.parametrize(
    ("lines", "gpus"), [("GPU 0: H100 (UUID: x)\\nGPU 1: H100 (UUID: y)\\n", 2), ("No devices\\n", 0)]
)
def test_fsdp_counts_the_gpus(lines, gpus, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/usr/bin/env bash\nprintf '{lines}'\n")
    tool.chmod(0o755)
    ran = run_script("finetune_fsdp.sh", TASK="SST2", DRY_RUN="1", PATH=f"{tmp_path}:{os.environ['PATH']}")
    if gpus:
        assert shlex.split(ran.stdout)[:6] == torchrun(gpus)
    else:
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "NUM_GPU is not set and nvidia-smi lists no GPU" in ran.stderr


def test_gpus_are_shared_by_processes():
    """Of a step's 16 examples each of 4 processes takes 4; the names say 16, as for one."""
    one = command("TASK=SST2 bash mezo.sh")
    four = command("TASK=SST2 LAYOUT=data4 bash mezo.sh", torchrun(4))
    at = one.index("--per_device_train_batch_size") + 1
    assert four == [*one[:at], "4", *one[at + 1 :]]
    assert command("TASK=SST2 LAYOUT=data4 bash icl.sh", torchrun(4)) == icl_arguments("SST2", OPT)
    assert command("TASK=SST2 LAYOUT=spread bash mezo.sh") == one


@pytest.mark.parametrize("script", ["mezo.sh", "icl.sh"])
@pytest.mark.parametrize(("said", "words"), [("data2", torchrun(2)), ("spread", ["python"])])
def test_the_layout_is_asked_where_there_are_gpus(said, words, script, tmp_path):
    for name, line in (("nvidia-smi", "GPU 0: x"), ("asked", said)):
        tool = tmp_path / name
        tool.write_text(f'#!/usr/bin/env bash\necho "$@" > {tmp_path}/{name}.words\necho {line}\n')
        tool.chmod(0o755)
    ran = run_script(
        script, TASK="SST2", DRY_RUN="1", PYTHON=f"{tmp_path}/asked", PATH=f"{tmp_path}:{os.environ['PATH']}"
    )
    assert shlex.split(ran.stdout)[1 : len(words)] == words[1:], ran.stderr
    assert " layout facebook/opt-" in (tmp_path / "asked.words").read_text()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"LAYOUT": "data3"}, "3 processes cannot share BS=16 examples evenly"),
        ({"LAYOUT": "all"}, "LAYOUT is spread or"),
    ],
)
def test_layouts_that_cannot_work(words, reason):
    ran = run_script("mezo.sh", TASK="SST2", DRY_RUN="1", **words)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert reason in ran.stderr


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


def test_every_variable_of_finetune():
    variables = "TASK=RTE MODEL=/m/my-opt/ MODE=lora LR=3e-4 BS=4 EPOCH=2 SEED=7 TRAIN=40 DEV=20 EVAL=60"
    for script, launcher, prefix in (("finetune", ["python"], ""), ("finetune_fsdp", torchrun(3), "fsdp-")):
        parsed = parse(command(f"{variables} NUM_GPU=3 bash {script}.sh --no_eval", launcher))
        job, training = parsed.job, parsed.training_kwargs
        assert (job.model_name, job.train_set_seed, training["seed"]) == ("/m/my-opt/", 7, 7)
        assert (job.num_train, job.num_dev, job.num_eval) == (40, 20, 60)
        assert (job.lora, job.dtype, job.no_eval) == (True, "float32", True)
        assert job.tag == f"{prefix}lora-2-4-3e-4-7"
        assert training["output_dir"] == f"result/RTE-my-opt-{prefix}lora-2-4-3e-4-7"
        assert (training["learning_rate"], training["num_train_epochs"]) == (3e-4, 2)
        assert training["per_device_train_batch_size"] * training["gradient_accumulation_steps"] == 4
    small = parse(command("TASK=ReCoRD BS=1 bash finetune.sh")).training_kwargs
    assert (small["per_device_train_batch_size"], small["gradient_accumulation_steps"]) == (1, 1)


def test_a_batch_that_cannot_be_accumulated():
    ran = run_script("finetune.sh", TASK="MultiRC", BS="5")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "finetune.sh: error: MultiRC takes 2 samples at a time: BS is a multiple of it, not 5\n"


def test_words_reach_run_py_unbroken(tmp_path):
    """Spaces, quotes and shell characters in a value: the printed command and the executed one agree."""
    words = ["--tag", "two words; $HOME 'x' *"]
    recorder = tmp_path / "python with a space"
    recorder.write_text(f'#!{sys.executable}\nimport sys\nsys.stderr.write("\\0".join(sys.argv[1:]))\n')
    recorder.chmod(0o755)
    ran = run_script("icl.sh", *words, TASK="SST2", MODEL="my models/opt", PYTHON=str(recorder))
    assert ran.stderr.split("\0") == [str(ROOT / "run.py"), *icl_arguments("SST2", "my models/opt"), *words]
    assert shlex.split(ran.stdout) == [str(recorder), *ran.stderr.split("\0")]


@pytest.mark.parametrize("script", ["icl.sh", "mezo.sh", "finetune.sh", "finetune_fsdp.sh"])
def test_without_a_task(script):
    ran = run_script(script)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"{script}: error: TASK is not set; for example: TASK=SST2 bash {script}\n"


@pytest.mark.parametrize("script", ["mezo.sh", "finetune.sh", "finetune_fsdp.sh"])
def test_unknown_mode(script):
    ran = run_script(script, TASK="SST2", MODE="head", NUM_GPU="1")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"{script}: error: MODE is ft, prefix or lora, not 'head'\n"


def test_a_mistake_shows_as_run_pys_one_line():
    ran = run_script("icl.sh", "--num_trian", "4", TASK="SST2", PYTHON=sys.executable)
    assert ran.returncode == 2
    assert ran.stderr == "justforward: error: unknown argument '--num_trian' (did you mean '--num_train'?)\n"
