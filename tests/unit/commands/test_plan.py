"""`justforward plan`: its arguments, what fits, and the commands that it prints."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from support.golden import MODEL
from transformers import LlamaConfig, OPTConfig

from justforward import machine
from justforward.command_line import arguments
from justforward.command_line.job import JobArguments
from justforward.commands import plan
from justforward.commands.cli import main
from justforward.compat import skeleton
from justforward.machine import GIB, Gpu
from justforward.planning.jobs import AT_A_TIME, Planner, Rates
from justforward.planning.memory import GPU_OVERHEAD, Memory
from justforward.planning.shape import read_shape, shape_of
from justforward.planning.target import Target
from justforward.tasks import names

ROOT = Path(__file__).parents[3]
GPU = ["--gpus", "1x24", "--tflops", "100"]


def made(capsys, *words):
    assert main(["plan", MODEL, *GPU, "--json", *words]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([], "model"),
        (["x", "--gpus", "24"], "argument --gpus: expected COUNTxGIB, as in 4x80, got '24'"),
        (["x", "--gpus", "0x24"], "argument --gpus: expected COUNTxGIB"),
        (["x", "--gpus", "1x24", "--memory", "8"], "--gpus and --memory exclude each other"),
        (["x", "--memory", "-1"], "argument --memory: must be a finite number above 0, got -1"),
        (["x", "--batch", "0"], "argument --batch: must be a finite number above 0, got 0"),
        (["x", "--batch", "four"], "--batch: invalid int value"),
        (["x", "--dtype", "int4"], "--dtype: invalid choice"),
        (["x", "--task", "SST-2"], "unknown task 'SST-2' (did you mean 'SST2'?)"),
        (["x", "--tflops", "nan"], "argument --tflops: must be a finite number above 0, got nan"),
        (["x", "--memory", "inf"], "argument --memory: must be a finite number above 0, got inf"),
        (["x", "--gpus", "1000000x1"], "argument --gpus: expected COUNTxGIB"),
        (["x", "--task_name", "RTE", "--task_file", "t.toml"], "--task_name and --task_file exclude each other"),
        (["./nowhere"], "MODEL ./nowhere: no such file or folder"),
        ([MODEL, "--tokens", "5000"], "argument --tokens: rows of"),
    ],
)
def test_a_mistake_is_one_line(words, fragment, capsys):
    assert main(["plan", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert fragment in err
    assert err.count("\n") == 1


def test_the_target_is_what_is_asked_for_or_what_is_here(monkeypatch):
    def target(*words):
        return plan.find_target(plan.parse(["x", *words]))

    assert target("--gpus", "2x23.5") == Target("cuda", 2, int(23.5 * GIB))
    assert target("--memory", "8") == Target("cpu", 1, 8 * GIB)
    monkeypatch.setattr(machine, "gpus", list)
    assert target() == Target("cpu", 1, machine.main_memory())
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("large", 80 * GIB), Gpu("small", 24 * GIB)])
    assert target() == Target("cuda", 2, 24 * GIB)


def test_what_fits():
    target = Target("cuda", 3, 100)
    sizes = {90: "yes", 91: "tight", 100: "tight", 101: "on 2", 200: "on 2", 201: "on 3", 301: "no"}
    assert {size: target.fit(Memory(weights=size)) for size in sizes} == sizes
    assert target.fit(Memory(activations=101)) == "no"
    assert Target("cpu", 1, 100).fit(Memory(weights=101)) == "no"


def test_json_has_all_jobs_in_bytes(capsys):
    found = made(capsys)
    jobs = {job["name"]: job for job in found["jobs"]}
    assert list(jobs) == [
        *("zero-shot", "in-context learning", "the same, one set", "guided, last blocks"),
        *(
            "MeZO, all weights",
            "MeZO, LoRA",
            "MeZO, LoRA, 4 bits",
            "MeZO, prefix",
            "LoRA, backpropagation",
            "Adam, all weights",
        ),
        "MeZO, offloaded",
    ]
    assert all(job["total"] == sum(job["memory"].values()) for job in jobs.values())
    assert jobs["zero-shot"]["memory"]["weights"] == 2 * found["shape"]["parameters"]
    assert jobs["zero-shot"]["memory"]["weights"] == 2 * 509_824
    assert found["log_bytes_per_step"] == 4
    assert found["target"] == {"device": "cuda", "count": 1, "memory": 24 * GIB}
    assert jobs["Adam, all weights"]["seconds"] > jobs["MeZO, all weights"]["seconds"] > 0
    assert jobs["MeZO, offloaded"]["command"].endswith("bash mezo.sh --zo_offload cpu")


def test_speed_is_given_or_none_for_a_gpu_that_is_not_here(capsys, monkeypatch):
    monkeypatch.setattr(machine, "gpus", list)
    slow, fast = made(capsys)["jobs"], made(capsys, "--tflops", "200")["jobs"]
    assert slow[0]["seconds"] == pytest.approx(2 * fast[0]["seconds"])
    assert main(["plan", MODEL, "--gpus", "1x24"]) == 0
    text = capsys.readouterr().out
    assert "give --tflops for times" in text
    assert "s/step" not in text


def test_longer_rows_and_larger_batches_need_more(capsys):
    small = {job["name"]: job["total"] for job in made(capsys, "--batch", "2", "--tokens", "64")["jobs"]}
    large = {job["name"]: job["total"] for job in made(capsys, "--batch", "8", "--tokens", "128")["jobs"]}
    assert all(large[name] >= small[name] for name in small)
    assert large["Adam, all weights"] > small["Adam, all weights"]


def test_a_task_that_generates_keeps_a_cache_and_one_with_texts_scores_more(capsys):
    plain, texts, answers = (
        {job["name"]: job["memory"] for job in made(capsys, "--task", task)["jobs"]}
        for task in ("SST2", "Copa", "SQuAD")
    )
    assert plain["zero-shot"]["cache"] == 0 < answers["zero-shot"]["cache"]
    assert "the same, one set" not in answers
    scored = [memories["Adam, all weights"]["logits"] for memories in (plain, texts)]
    assert scored[1] > scored[0]


@pytest.mark.parametrize(
    ("method", "per_weight"), [("mezo", 0), ("conmezo", 4), ("zo-adam", 8), ("adamezo", 0), ("grzo", 0)]
)
def test_what_a_method_keeps_is_counted(method, per_weight, capsys):
    found = made(capsys, "--zo_method", method)
    jobs = {job["name"]: job["memory"]["training"] for job in found["jobs"]}
    assert jobs["MeZO, all weights"] == per_weight * found["shape"]["parameters"]


def test_the_state_of_a_low_rank_is_small(capsys):
    found = made(capsys, "--zo_method", "lozo-m")
    state = {job["name"]: job["memory"]["training"] for job in found["jobs"]}["MeZO, all weights"]
    assert 0 < state < found["shape"]["parameters"]


def test_a_model_that_lora_does_not_know_gets_no_line_for_it(capsys, monkeypatch):
    monkeypatch.setattr("justforward.planning.shape._lora_widths", lambda model: None)
    assert not [job for job in made(capsys)["jobs"] if "LoRA" in job["name"]]


def test_the_table_names_everything(capsys):
    assert main(["plan", MODEL, *GPU, "--gpus", "2x0.6"]) == 0
    text = capsys.readouterr().out
    for fragment in (
        "509,824 weights in 2 blocks, float16",
        "SST2, batches of 16 samples of 256 tokens, up to 16384 tokens a pass",
        "to fit 2 GPUs of 0.6 GiB; 100 TFLOP/s as given",
        "4 bytes per step: 80 kB for 20,000 steps",
        "NUM_GPU=2 BS=16 bash finetune_fsdp.sh",
    ):
        assert fragment in text
    rows = [line for line in text.splitlines() if line.endswith(("s/step", "s/example"))]
    assert len(rows) == 11
    assert len({len(row) for row in rows}) == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are written for bash")
@pytest.mark.parametrize(("task", "dtype"), [("SST2", "float16"), ("Copa", "bfloat16"), ("SQuAD", "float32")])
def test_its_commands_are_accepted(task, dtype, capsys):
    """What the scripts make of them parses, with the planned dtype and batch."""
    found = made(capsys, "--task", task, "--dtype", dtype, "--batch", "4", "--demonstrations", "5")
    for job in found["jobs"]:
        if "--zo_offload" in job["command"] and not hasattr(JobArguments, "zo_offload"):
            continue
        line = job["command"]
        if " bash " in line:
            variables, script = line.split(" bash ")
            settings = dict(pair.split("=", 1) for pair in shlex.split(variables))
            environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **settings}
            command = ["bash", *shlex.split(script)]
            ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert ran.returncode == 0, ran.stderr
            line = ran.stdout
        parsed = arguments.parse(shlex.split(line)[2:])
        assert parsed.job.model_name == MODEL
        demonstrations = 0 if job["name"] == "zero-shot" else 5
        assert parsed.job.num_train == demonstrations or parsed.job.is_training
        backward = parsed.job.trainer == "regular"
        assert parsed.job.dtype == ("4bit" if "4 bits" in job["name"] else "float32" if backward else dtype)
        if parsed.job.trainer != "none":
            at_a_time = parsed.training_kwargs["per_device_train_batch_size"]
            accumulated = parsed.training_kwargs.get("gradient_accumulation_steps", 1)
            assert at_a_time * accumulated == 4


@pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are written for bash")
@pytest.mark.parametrize("task", names())
def test_samples_at_a_time_are_those_of_the_script(task):
    environment = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "TASK": task, "BS": "16"}
    ran = subprocess.run(["bash", "finetune.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    words = shlex.split(ran.stdout)
    at_a_time = int(words[words.index("--per_device_train_batch_size") + 1])
    assert AT_A_TIME.get(task, 16) == at_a_time


ODD = {
    "no attention": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64},
    "a word": {"model_type": "opt", "hidden_size": "abc"},
    "no heads": {"model_type": "opt", "num_attention_heads": 0},
    "negative": {"model_type": "opt", "hidden_size": -64, "word_embed_proj_dim": -64},
}


@pytest.mark.parametrize("config", ODD.values(), ids=ODD)
def test_an_odd_configuration_is_one_line(config, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["plan", str(tmp_path), *GPU]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"justforward: error: MODEL {tmp_path}: ")


def test_speeds_are_measured_where_none_is_given(monkeypatch):
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(machine, "matmul_rate", lambda dtype, **_: 5.0)
    monkeypatch.setattr(machine, "noise_rate", lambda dtype, **_: 2.0)
    shape = read_shape(MODEL)
    for words, flops, draw in (([], 5.0, 2.0), (["--tflops", "3"], 3e12, 0.0)):
        given = plan.parse([MODEL, "--memory", "8", *words])
        assert plan.find_rates(given, shape, plan.find_target(given)) == Rates(flops, draw)


def llama(hidden, feed_forward, layers, heads, *, tied=False):
    sizes = {"hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": 8, "vocab_size": 128256}
    return LlamaConfig(**sizes, max_position_embeddings=131072, tie_word_embeddings=tied)


def opt(hidden, layers, heads):
    sizes = {"hidden_size": hidden, "ffn_dim": 4 * hidden, "num_hidden_layers": layers, "num_attention_heads": heads}
    return OPTConfig(**sizes, word_embed_proj_dim=hidden)


SHOWN = {
    "Llama, 1 B": llama(2048, 8192, 16, 32, tied=True),
    "Llama, 3 B": llama(3072, 8192, 28, 24, tied=True),
    "Llama, 8 B": llama(4096, 14336, 32, 32),
    "OPT, 13 B": opt(5120, 40, 40),
    "OPT, 30 B": opt(7168, 48, 56),
    "Llama, 70 B": llama(8192, 28672, 80, 64),
}
"""The models of the table in docs/which.md."""


@pytest.mark.parametrize("name", SHOWN)
def test_the_table_of_memory_in_the_docs(name):
    with torch.device("meta"):
        shape = shape_of(skeleton(SHOWN[name]))

    def jobs(dtype):
        given = plan.parse([MODEL, "--dtype", dtype, *GPU])
        target = plan.find_target(given)
        load, asked = plan.find_load(given, shape, target), plan.Asked(name, dtype, given.batch, given.task)
        planner = Planner(asked, shape, load, target, (GPU_OVERHEAD, GPU_OVERHEAD), Rates(1.0, 0.0))
        return {job.name: job.memory.total / GIB for job in planner.jobs()}

    narrow, wide = jobs("bfloat16"), jobs("float32")
    columns = ["guided, last blocks", "MeZO, all weights", "MeZO, LoRA, 4 bits", "MeZO, offloaded"]
    sizes = [*map(narrow.get, columns), wide["LoRA, backpropagation"], wide["Adam, all weights"]]
    row = " | ".join([name, *(f"{size:.1f}" if size < 9.95 else f"{size:,.0f}" for size in sizes)])
    assert f"| {row} |" in (ROOT / "docs" / "which.md").read_text(encoding="utf-8").splitlines()
