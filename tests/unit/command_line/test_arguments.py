"""Words -> values: types, defaults, aliases, old spellings, the canonical command line, the frozen interface."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from justforward.command_line.arguments import Parsed, help_page, parse
from justforward.command_line.job import JobArguments
from justforward.command_line.old_spellings import IGNORED, REMOVED, RENAMED, TRANSLATED
from justforward.command_line.parser import to_words
from justforward.command_line.specs import job_specs
from justforward.command_line.trainer_fields import trainer_specs
from justforward.compat import FORMER_FIELDS, NEW_NAMES, TRANSFORMERS

FROZEN = Path(__file__).parents[2] / "fixtures" / "cli.json"
BY_LENGTH = {"train_sampling_strategy": "group_by_length"} if TRANSFORMERS >= (5, 2) else {"group_by_length": True}
TRAINING = ["--trainer", "zo", "--num_train", "8", "--train_set_seed", "0"]


def test_own_arguments_are_the_frozen_ones():
    """A deliberate change of the interface edits tests/fixtures/cli.json along with it."""
    actual = [
        {"name": spec.name, "type": spec.annotation, "default": spec.default}
        | ({"choices": list(spec.choices)} if spec.choices else {})
        | ({"aliases": list(spec.aliases)} if spec.aliases else {})
        for spec in job_specs()
    ]
    assert actual == json.loads(FROZEN.read_text())


def test_nothing_given_is_all_defaults():
    parsed = parse([])
    assert parsed == Parsed(JobArguments(), {"output_dir": "result/tmp"})
    assert not parsed.job.is_training
    assert parsed.job.dtype == "float32"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--num_eval", "7"], "num_eval", 7),
        (["--num_eval=7"], "num_eval", 7),
        (["--num-eval", "7"], "num_eval", 7),
        (["--num_test", "7"], "num_eval", 7),
        (["--num_eval", "none"], "num_eval", None),
        (["--num_train", "3", "--num_train", "0"], "num_train", 0),
        (["--sfc"], "sfc", True),
        (["--sfc", "True"], "sfc", True),
        (["--sfc", "yes"], "sfc", True),
        (["--sfc", "1"], "sfc", True),
        (["--sfc", "False"], "sfc", False),
        (["--sfc", "no"], "sfc", False),
        (["--sfc=0"], "sfc", False),
        (["--only_train_option", "False"], "only_train_option", False),
        (["--no_only_train_option"], "only_train_option", False),
        (["--no_reparam"], "no_reparam", True),
        (["--no_no_reparam"], "no_reparam", False),
        (["--zo_eps", "1e-2"], "zo_eps", 0.01),
        (["--eos_token", "\n\n"], "eos_token", "\n\n"),
        (["--tag=-x"], "tag", "-x"),
        (["--result_file", "none"], "result_file", None),
        (["--num_dev", "0"], "num_dev", None),
        (["--task_name", "SQuAD"], "task_name", "SQuAD"),
        (["--load_bfloat16"], "dtype", "bfloat16"),
    ],
)
def test_own_values(words, name, value):
    got = getattr(parse(words).job, name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("words", "kwargs"),
    [
        (["--learning_rate", "1e-7"], {"learning_rate": 1e-7}),
        (["--max_steps", "-1"], {"max_steps": -1}),
        (["--eval_steps", "none"], {"eval_steps": None}),
        (["--disable_tqdm", "True"], {"disable_tqdm": True}),
        (["--tf32", "none"], {"tf32": None}),
        (["--no_dataloader_pin_memory"], {"dataloader_pin_memory": False}),
        (["--report_to", "none"], {"report_to": "none"}),
        (["--report_to", "wandb", "tensorboard"], {"report_to": ["wandb", "tensorboard"]}),
        (["--label_names", "labels"], {"label_names": ["labels"]}),
        (["--include_for_metrics", "inputs", "loss"], {"include_for_metrics": ["inputs", "loss"]}),
        (["--debug", "underflow_overflow", "tpu_metrics_debug"], {"debug": "underflow_overflow tpu_metrics_debug"}),
        (["--fsdp"], {"fsdp": True}),
        (["--fsdp", "full_shard auto_wrap"], {"fsdp": "full_shard auto_wrap"}),
        (["--fsdp_config", '{"min_num_params": 1}'], {"fsdp_config": '{"min_num_params": 1}'}),
        (["--deepspeed", "ds.json"], {"deepspeed": "ds.json"}),
        (["--liger_kernel_config", '{"rope": true}'], {"liger_kernel_config": {"rope": True}}),
        (["--parallelism_config", '{"tp_size": 1}'], {"parallelism_config": {"tp_size": 1}}),
        (["--include_num_input_tokens_seen", "True"], {"include_num_input_tokens_seen": True}),
        (["--include_num_input_tokens_seen", "all"], {"include_num_input_tokens_seen": "all"}),
        (["--lr_scheduler_type", "constant"], {"lr_scheduler_type": "constant"}),
    ],
)
def test_trainer_values(words, kwargs):
    assert parse(words).training_kwargs == {"output_dir": "result/tmp", **kwargs}


@pytest.mark.parametrize(
    ("words", "kwargs"),
    [
        (["--evaluation_strategy", "no"], {"eval_strategy": "no"}),
        (["--eval_strategy", "steps", "--evaluation_strategy", "no"], {"eval_strategy": "no"}),
        (["--no_cuda"], {"use_cpu": True}),
        (["--no_cuda", "False"], {"use_cpu": False}),
        (["--gradient_checkpointing"], {"activation_checkpointing": True}),
        (["--warmup_ratio", "0.06"], {"warmup_steps": 0.06}),
        (["--adafactor"], {"optim": "adafactor"}),
        (["--adafactor", "False"], {}),
        (["--group_by_length", "True"], BY_LENGTH),
        (["--include_inputs_for_metrics"], {"include_for_metrics": ["inputs"]}),
        (
            ["--fsdp_transformer_layer_cls_to_wrap", "OPTDecoderLayer"],
            {"fsdp_config": '{"transformer_layer_cls_to_wrap": ["OPTDecoderLayer"]}'},
        ),
        (
            ["--fsdp_config", '{"xla": false}', "--fsdp_transformer_layer_cls_to_wrap", "A,B"],
            {"fsdp_config": '{"transformer_layer_cls_to_wrap": ["A", "B"], "xla": false}'},
        ),
    ],
)
def test_old_spellings(words, kwargs):
    parsed = parse(words)
    assert parsed.training_kwargs == {"output_dir": "result/tmp", **kwargs}
    assert parsed.notes == ()


@pytest.mark.parametrize("name", sorted(IGNORED))
def test_old_spellings_without_effect_leave_a_note(name):
    for words in ([f"--{name}"], [f"--{name}", "value"]):
        parsed = parse(words)
        assert parsed.training_kwargs == {"output_dir": "result/tmp"}
        assert parsed.notes == (f"--{name} is ignored: {IGNORED[name]}",)


@pytest.mark.parametrize("name", sorted(REMOVED))
def test_old_spellings_that_are_refused_name_the_mend(name):
    with pytest.raises(ValueError, match=f"--{name}: no longer exists; ") as caught:
        parse([f"--{name}", "value"])
    assert REMOVED[name] in str(caught.value)


def test_old_spellings_collide_with_nothing_that_exists():
    current = {spec.name for spec in (*job_specs(), *trainer_specs())}
    # Until transformers 5.2 it is a field, which stands for itself.
    assert not current & {*TRANSLATED, *IGNORED, *REMOVED} - {"group_by_length"}
    assert set(RENAMED.values()) <= current


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--task_name", "SQuAD", "--num_eval", "9", "--eos_token", "\n\n", "--tag=-x", "--top_k", "5"],
        [*TRAINING, "--num_dev", "4", "--learning_rate", "1e-7", "--zo_eps", "0.1", "--only_train_option", "False"],
        [*TRAINING, "--report_to", "a", "b", "--fsdp", "--fsdp_config", "{}", "--max_steps", "-1", "--tf32", "none"],
        ["--liger_kernel_config", '{"rope": true}', "--warmup_ratio", "0.5", "--logging_steps", "10"],
    ],
)
def test_command_line_is_a_round_trip(words):
    parsed = parse(words)
    assert dataclasses.replace(parse(parsed.command_line()), notes=()) == parsed
    assert parse(parsed.command_line()).command_line() == parsed.command_line()


def test_a_task_file_gives_the_task_its_name():
    file = str(Path(__file__).parents[3] / "examples" / "own_task" / "tickets.toml")
    parsed = parse(["--task_file", file])
    assert (parsed.job.task_name, parsed.job.task_file) == ("tickets", file)
    assert parse(["--task_name", "tickets", "--task_file", file]) == parsed
    assert parse(parsed.command_line()) == parsed


def test_command_line_is_canonical_and_keeps_secrets_out():
    parsed = parse(["--evaluation_strategy=no", "--hub_token", "secret", "--sfc", "yes", "--num-eval", "5"])
    assert parsed.command_line() == [
        *["--num_eval", "5", "--sfc", "True"],
        *["--output_dir", "result/tmp", "--eval_strategy", "no"],
    ]


def test_trainer_specs_are_the_fields_of_the_real_class():
    from transformers import TrainingArguments

    fields = {NEW_NAMES.get(field.name, field.name): field for field in dataclasses.fields(TrainingArguments)}
    fields = {name: field for name, field in fields.items() if name not in FORMER_FIELDS}
    specs = {spec.name: spec for spec in trainer_specs()}
    assert list(specs) == list(fields)
    for name in set(fields) - {"output_dir", "optim", "include_for_metrics"}:
        assert specs[name].default == fields[name].default, name
        assert specs[name].help.strip("."), name
    assert not {spec.name for spec in job_specs()} & set(fields)


def test_training_gives_the_trainers_object(tmp_path):
    words = [*TRAINING, "--output_dir", str(tmp_path), "--max_steps", "3", "--warmup_ratio", "0.5", "--no_cuda"]
    training = parse([*words, "--report_to", "none", "--fsdp_transformer_layer_cls_to_wrap", "A"]).training(seed=7)
    assert (training.max_steps, training.warmup_steps, training.seed, training.use_cpu) == (3, 0.5, 7, True)
    assert training.output_dir == str(tmp_path)
    assert isinstance(training.fsdp_config, dict)
    assert training.fsdp_config["transformer_layer_cls_to_wrap"] == ["A"]


def test_what_the_trainers_object_refuses_is_a_value_error():
    words = [*TRAINING, "--num_dev", "4", "--load_best_model_at_end", "--save_strategy", "epoch", "--no_cuda"]
    with pytest.raises(ValueError, match="training arguments: --load_best_model_at_end requires"):
        parse(words).training()
    with pytest.raises(ValueError, match=r"training arguments: .*no_such\.json"):
        parse([*TRAINING, "--accelerator_config", "no_such.json", "--no_cuda"]).training()


def test_every_argument_has_a_help_of_its_own():
    texts = [spec.help for spec in job_specs()]
    assert all(text.endswith(".") and len(text) > 15 for text in texts)
    assert len(set(texts)) == len(texts)


def test_help_shows_every_argument(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    page = help_page({"sweep": "search"})
    for spec in (*job_specs(), *trainer_specs()):
        assert f"--{spec.name}" in page
    assert max(map(len, page.splitlines())) <= 118
    assert "\n  sweep    search\n" in page
    assert page.index("Task and data:") < page.index("MeZO:") < page.index("\nTrainer: ") < page.index("examples:")


def test_words_of_a_value():
    specs = {spec.name: spec for spec in trainer_specs()}
    assert to_words(specs["learning_rate"], 1e-7) == ["--learning_rate", "1e-07"]
    assert to_words(specs["max_steps"], -1) == ["--max_steps=-1"]
    assert to_words(specs["num_train_epochs"], 3.0) == ["--num_train_epochs", "3"]


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--num_trian", "3"], ["--icl_sfc"]])
def test_answers_without_importing_torch(words):
    code = (
        "import sys; from justforward.commands.cli import main; main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'datasets', 'sklearn'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True)
