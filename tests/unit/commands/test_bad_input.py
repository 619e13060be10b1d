"""Wrong invocations: exit code 2 and one line on stderr that names the argument and the mend."""

from pathlib import Path

import pytest

from justforward.commands.cli import main

ZO = ["--trainer", "zo", "--num_train", "8", "--train_set_seed", "0"]
REGULAR = ["--trainer", "regular", *ZO[2:]]
TICKETS = ["--task_file", str(Path(__file__).parents[3] / "examples" / "own_task" / "tickets.toml")]

WRONG = [
    # names
    (["--num_trian", "4"], "unknown argument '--num_trian' (did you mean '--num_train'?)"),
    (["--num_trian=4"], "unknown argument '--num_trian' (did you mean '--num_train'?)"),
    (["-num_train", "4"], "unknown argument '-num_train' (did you mean '--num_train'?)"),
    (["--learning-rat", "4"], "unknown argument '--learning-rat' (did you mean '--learning_rate'?)"),
    (["--num_tr", "4"], "unknown argument '--num_tr'"),
    (["--zzz"], "unknown argument '--zzz'"),
    (["--"], "unknown argument '--'"),
    (["--no_sfc"], "unknown argument '--no_sfc'"),
    (["--num_train", "4", "5"], "unexpected word '5'"),
    (["--task_name", "SST-2"], "argument --task_name: unknown task 'SST-2' (did you mean 'SST2'?)"),
    (["--task_name", "SST2__x"], "argument --task_name: "),
    (["--task_file", "no.toml"], "argument --task_file: no.toml: there is no such file"),
    ([*TICKETS, "--task_name", "SST2"], "--task_name SST2 is another task than that of --task_file"),
    ([*TICKETS, "--data_dir", "."], "--data_dir is for tasks that do not say where their rows are"),
    (["task"], "justforward task: the following arguments are required: list|check"),
    (["task", "chekc"], "invalid choice: 'chekc' (choose from 'list', 'check')"),
    (["task", "check", "SST-2"], "unknown task 'SST-2' (did you mean 'SST2'?)"),
    (["task", "check", "SST2", "--num", "-1"], "argument --num: must be at least 0, got -1"),
    (["--trainer", "zoo"], "argument --trainer: unknown value 'zoo' (did you mean 'zo'?); one of none, regular, zo"),
    (["--optim", "adamw"], "argument --optim: unknown value 'adamw'"),
    (["rnu"], "unknown command 'rnu' (did you mean 'run'?)"),
    # values
    (["--num_train"], "argument --num_train: expected one argument"),
    (["--num_train", "four"], "argument --num_train: expected an integer, got 'four'"),
    (["--num_train", "4.5"], "argument --num_train: expected an integer, got '4.5'"),
    (["--num_train", "none"], "argument --num_train: expected an integer, got 'none'"),
    (["--zo_eps", "nan"], "argument --zo_eps: expected a finite number or auto, got 'nan'"),
    (["--learning_rate", "1e-7x"], "argument --learning_rate: expected a finite number or auto, got '1e-7x'"),
    (["--sfc", "maybe"], "argument --sfc: expected True or False, got 'maybe'"),
    (["--fsdp_config", "{1}"], "argument --fsdp_config: not valid JSON"),
    (["--parallelism_config", "[]"], "argument --parallelism_config: expected a JSON object"),
    (["--data_dir", "no/such"], "argument --data_dir: there is no folder 'no/such'"),
    (["--num_train", "-1"], "argument --num_train: must be at least 0, got -1"),
    (["--num_eval", "0"], "argument --num_eval: must be at least 1, got 0"),
    (["--zo_direction_groups", "2"], "--zo_direction_groups 2 has a group for each direction at most"),
    (["--zo_check_steps", "-1"], "argument --zo_check_steps: must be at least 0, got -1"),
    (["--zo_offload", "cpu"], "--zo_offload cpu is for training by forward passes"),
    ([*ZO, "--zo_offload", "gpu"], "argument --zo_offload: unknown value 'gpu'"),
    ([*ZO, "--zo_offload", "cpu", "--fsdp"], "--zo_offload cpu keeps plain weights on the host of one process"),
    ([*ZO, "--zo_offload", "disk", "--torch_compile"], "--zo_offload disk keeps plain weights on the host"),
    ([*ZO, "--zo_offload", "disk", "--zo_probe", "paired"], "--zo_offload disk probes one sign at a time"),
    (["--zo_cuda_graphs"], "--zo_cuda_graphs records the probes of --trainer zo"),
    ([*ZO, "--zo_cuda_graphs", "--torch_compile_mode", "default"], "leave --torch_compile_mode out"),
    ([*ZO, "--zo_cuda_graphs", "--zo_split", "--zo_samples", "2"], "of a whole batch, and --zo_split has others"),
    ([*ZO, "--zo_cuda_graphs", "--zo_offload", "cpu"], "over weights that stay on one GPU: leave --zo_offload out"),
    ([*ZO, "--zo_cuda_graphs", "--prefix_tuning"], "over weights that stay on one GPU: leave --prefix_tuning out"),
    ([*ZO, "--zo_cuda_graphs", "--zo_method", "lozo"], "--zo_cuda_graphs takes dense directions of a whole batch"),
    ([*ZO, "--fsdp", "--prefix_tuning"], "--fsdp shares the model among processes"),
    ([*ZO, "--fsdp", "--zo_probe", "in_place"], "--zo_probe in_place takes no weights that processes share"),
    (["--num_train_sets", "0"], "argument --num_train_sets: must be at least 1, got 0"),
    (["--train_set_seed", "4294967296"], "argument --train_set_seed: must be below 2**32"),
    (["--seed", "-3"], "argument --seed: must be at least 0, got -3"),
    (["--max_length", "1"], "argument --max_length: must be at least 2, got 1"),
    (["--token_budget", "0"], "argument --token_budget: must be at least 1, got 0"),
    (["--learning_rate", "-1e-3"], "argument --learning_rate: must be at least 0, got -0.001"),
    (["--per_device_train_batch_size", "0"], "argument --per_device_train_batch_size: must be at least 1, got 0"),
    (["--temperature", "0"], "argument --temperature: must be above 0, got 0"),
    (["--top_p", "1.5"], "argument --top_p: must be above 0 and at most 1, got 1.5"),
    (["--eos_token", ""], "argument --eos_token: must not be empty"),
    # old spellings
    (["--torch_dtype", "float16"], "argument --torch_dtype: no longer exists; use --load_float16"),
    (["--warmup_ratio", "1.5"], "argument --warmup_ratio: must lie in [0, 1), got 1.5; for a number of steps use"),
    (["--warmup_ratio"], "argument --warmup_ratio: expected one value"),
    (["--fsdp_config", "f.json", "--fsdp_min_num_params", "5"], 'put {"min_num_params": 5} into the file f.json'),
    # sample sets
    (["--trainer", "zo", "--train_set_seed", "0"], "--trainer zo has nothing to train on: give --num_train"),
    (["--trainer", "zo", "--num_train", "8"], "give --train_set_seed 0 for one set, or --num_train_sets N"),
    (["--trainer", "regular", "--num_train", "8"], "--trainer regular needs to know which training samples"),
    (["--num_train_sets", "3", "--train_set_seed", "1"], "give only one of the two"),
    (["--num_dev", "4"], "--num_dev is for choosing among checkpoints in training"),
    (["--no_eval"], "--no_eval without a --trainer leaves nothing to do"),
    # model, calibration
    (["--load_float16", "--load_bfloat16"], "--load_float16 and --load_bfloat16 exclude each other"),
    (["--load_int8", "--load_float16"], "--load_float16 and --load_int8 exclude each other"),
    (["--sfc", "--task_name", "SQuAD"], "--sfc compares options, and SQuAD has none"),
    (["--icl_sfc", "--num_train", "4", "--task_name", "DROP"], "--icl_sfc compares options, and DROP has none"),
    (["--icl_sfc"], "--icl_sfc calibrates with demonstrations, and there are none: give --num_train"),
    ([*ZO, "--icl_sfc"], "a trained model is evaluated without any: use --sfc"),
    # training
    ([*ZO, "--zo_eps", "0"], "argument --zo_eps: must be above 0"),
    ([*ZO, "--zo_eps", "-1e-3"], "argument --zo_eps: must be above 0"),
    ([*ZO, "--fp16"], "--fp16 is mixed precision for gradients, and --trainer zo has none: use --load_float16"),
    ([*ZO, "--bf16"], "--bf16 is mixed precision for gradients, and --trainer zo has none: use --load_bfloat16"),
    ([*REGULAR, "--non_diff"], "--non_diff optimises a metric that has no gradient: use it with --trainer zo"),
    ([*ZO, "--train_as_classification", "--task_name", "SQuAD"], "--train_as_classification needs options, and SQuAD"),
    ([*ZO, "--train_as_classification", "--only_train_option", "False"], "--only_train_option False is for language"),
    ([*ZO, "--load_best_model_at_end"], "--load_best_model_at_end would choose the checkpoint on the evaluation sam"),
    ([*ZO, "--num_dev", "0", "--load_best_model_at_end"], "evaluation samples: give --num_dev"),
    ([*ZO, "--evaluation_strategy", "steps"], "--eval_strategy steps has no samples to evaluate on"),
    # tuning, generation
    ([*ZO, "--lora", "--prefix_tuning"], "--lora and --prefix_tuning exclude each other"),
    ([*REGULAR, "--head_tuning", "--linear_probing"], "--head_tuning and --linear_probing exclude each other"),
    (["--lora"], "--lora says how to train, and nothing is trained: give --trainer"),
    ([*ZO, "--linear_probing"], "use it with --trainer regular"),
    ([*REGULAR, "--linear_probing", "--train_as_classification"], "give --train_as_classification False"),
    ([*REGULAR, "--linear_probing", "--load_int8"], "--load_int8 weights cannot be trained themselves"),
    ([*REGULAR, "--lp_early_stopping"], "--lp_early_stopping says when linear probing stops"),
    ([*REGULAR, "--fp16", "--load_float16"], "--fp16 scales gradients of float32 weights"),
    ([*ZO, "--prefix_tuning", "--no_reparam", "False"], "add --prefix_init_by_real_act False"),
    (["--task_name", "SQuAD", "--max_length", "50"], "--max_new_tokens 50 leaves no room for a prompt in --max_length"),
]


@pytest.mark.parametrize(("words", "fragment"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_invocation(words, fragment, capsys):
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("justforward: error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert fragment in err
