"""A job's own arguments, each with its help and default; `specs.job_specs` makes them command-line arguments.

Names, types and defaults are the interface that users' scripts rely on: they are frozen by tests/fixtures/cli.json.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from justforward.command_line.fields import DATA, EVALUATION, GENERATION, MODEL, OUTPUT, TRAINING, TUNING, arg
from justforward.command_line.zeroth_order import ZerothOrderArguments


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobArguments(ZerothOrderArguments):
    """What to do with which model on which task. `specs.job_specs` makes command-line arguments of the fields."""

    task_name: str = arg(
        DATA,
        "SST2",
        "The task: SST2, RTE, CB, BoolQ, WSC, WIC, MultiRC, Copa, ReCoRD, SQuAD, DROP, or one that a plug-in adds. "
        "TASK__SUBTASK picks a subtask of a task that has them; lm_eval:NAME is a task of an installed lm_eval "
        "(docs/lm-eval.md).",
    )
    task_file: str | None = arg(
        DATA,
        None,
        "Instead of task_name: a task of your own in a TOML file, which says where the rows are and what the prompt "
        "is, or in a Python file, which registers it. docs/own-task.md shows how.",
    )
    data_dir: str | None = arg(
        DATA,
        None,
        "Read the rows from DIR/<Task>/train.jsonl and DIR/<Task>/validation.jsonl (one JSON object per line, the "
        "hub's columns) instead of downloading them. For machines without network, and for your own data.",
    )
    num_train: int = arg(
        DATA,
        0,
        "Without a trainer: demonstrations in the prompt (0: zero-shot). With a trainer: training samples.",
    )
    num_dev: int | None = arg(
        DATA,
        None,
        "Development samples, on which checkpoints are compared. They are drawn from the training split together "
        "with the num_train samples and share none with them. Only with a trainer; 0 is the same as none.",
    )
    num_eval: int | None = arg(
        DATA,
        None,
        "Samples to evaluate on, drawn from the validation split with the train set's seed (0 without one). "
        "none: the whole split.",
        aliases=("num_test",),
    )
    num_train_sets: int | None = arg(
        DATA,
        None,
        "Repeat the job on this many train (or demonstration) sets, drawn with the seeds 0, 1, 2, ...; each writes "
        "its own result file. Excludes train_set_seed.",
    )
    train_set_seed: int | None = arg(
        DATA,
        None,
        "Seed of the one train (or demonstration) set. With neither this nor num_train_sets, every evaluation "
        "sample gets demonstrations of its own; that is possible only without a trainer.",
    )
    model_name: str = arg(
        MODEL,
        "facebook/opt-125m",
        "Hub id, or path of a folder: a model or an adapter that save_pretrained wrote, or a MeZO run's log.",
    )
    base_model: str | None = arg(
        MODEL, None, "The base of an adapter or a log that model_name names. none: as they say."
    )
    trust_remote_code: bool = arg(
        MODEL, False, "Let a model repository run its own Python code. Only for repositories that you have read."
    )
    load_float16: bool = arg(MODEL, False, "Weights in float16. With none of the load_ arguments: float32.")
    load_bfloat16: bool = arg(MODEL, False, "Weights in bfloat16.")
    load_int8: bool = arg(MODEL, False, "Layers' weights rounded to 8-bit integers; adapters or scales are trained.")
    load_4bit: bool = arg(MODEL, False, "Layers' weights rounded to 4 bits (NF4); adapters or scales are trained.")
    max_length: int = arg(
        MODEL,
        2048,
        "Longest input in tokens. Longer prompts lose tokens on the left, after the beginning-of-sequence token; "
        "when generating, max_new_tokens are kept free.",
    )
    no_auto_device: bool = arg(
        MODEL, False, "Do not spread the layers over all visible GPUs. FSDP and distributed launchers need this."
    )
    bos_token_id: int | None = arg(
        MODEL,
        None,
        "Token put before every prompt. none: 0 for OPT models, as in the published runs; for others what their "
        "tokenizer adds.",
    )
    sfc: bool = arg(
        EVALUATION,
        False,
        "Calibrate: subtract each option's score after a prompt without the sample's content "
        "(surface-form competition). Classification and multiple choice only.",
    )
    icl_sfc: bool = arg(
        EVALUATION, False, "The same, with the demonstrations in front of that prompt. Needs num_train, no trainer."
    )
    token_budget: int | None = arg(
        EVALUATION,
        None,
        "Most tokens in one forward batch of the evaluation, padding included. Lower it when memory runs out. "
        "none: 2048 on a CPU, 16384 on a GPU.",
    )
    chat_template: bool = arg(
        EVALUATION,
        False,
        "Prompts are turns of a conversation, by the tokenizer's own chat template; options and answers stand in the "
        "assistant's turn. False: plain texts, unless a task file says chat = true.",
    )
    system_prompt: str | None = arg(
        EVALUATION, None, "With chat_template: what the conversation begins with. none: what the template says."
    )
    no_eval: bool = arg(EVALUATION, False, "Skip the evaluation that follows training.")
    trainer: str = arg(
        TRAINING,
        "none",
        "none: evaluate only (zero-shot or in-context learning). zo: MeZO, forward passes only. "
        "guided: forward passes only, along directions that hidden states and logits tell (docs/guided.md); unless "
        "given, --train_blocks is -3: and --learning_rate 1, a factor of the measured step. "
        "regular: fine-tuning by backpropagation.",
        choices=("none", "regular", "zo", "guided"),
    )
    only_train_option: bool = arg(
        TRAINING, True, "Take the loss on the option or answer alone. False: on the whole text, prompt included."
    )
    train_as_classification: bool = arg(
        TRAINING,
        False,
        "Cross-entropy over all options' mean token log-probabilities. False: language-model loss on the right "
        "option. Not for tasks that generate (SQuAD, DROP).",
    )
    save_on_interrupt: bool = arg(
        TRAINING,
        False,
        "On SIGUSR1 or SIGINT finish the step, save a checkpoint and stop, instead of stopping at once; a second "
        "SIGINT stops at once. The same command given again continues from there.",
    )
    overwrite_output_dir: bool = arg(
        TRAINING,
        False,
        "Delete the checkpoints in output_dir and start anew. False: continue from the last one if this job made it; "
        "an error if another job did.",
    )
    lora: bool = arg(TUNING, False, "LoRA on the query and value projections.")
    lora_alpha: int = arg(TUNING, 16, "LoRA scale: the update is multiplied by lora_alpha / lora_r.")
    lora_r: int = arg(TUNING, 8, "LoRA rank: the inner width of each update.")
    prefix_tuning: bool = arg(TUNING, False, "Prefix-tuning: trained keys and values before every layer's own.")
    num_prefix: int = arg(TUNING, 5, "Prefix length in tokens.")
    no_reparam: bool = arg(
        TUNING,
        True,
        "Train the prefix itself. False: train it through an MLP, which needs prefix_init_by_real_act False.",
    )
    prefix_init_by_real_act: bool = arg(
        TUNING, True, "Start the prefix from the model's activations on random tokens. False: from random numbers."
    )
    merge_lora: bool = arg(
        TUNING,
        False,
        "With save_model: add LoRA's updates to the weights and save the plain model, instead of the adapter.",
    )
    tune_scales: bool = arg(
        TUNING, False, "Train the scales of quantised weights, by MeZO (QZO): with --load_4bit or --load_int8."
    )
    head_tuning: bool = arg(
        TUNING, False, "Train the language-model head only; it gets weights of its own where it shares the embedding's."
    )
    linear_probing: bool = arg(
        TUNING,
        False,
        "Fit the head by logistic regression on the last hidden state at the option's position. With trainer regular.",
    )
    lp_early_stopping: bool = arg(
        TUNING,
        False,
        "Stop the logistic regression at tolerance 0.01 or 1,000 iterations. False: at 1e-4 or 5,000.",
    )
    untie_emb: bool = arg(TUNING, False, "Give the head weights of its own where it shares the input embedding's.")
    train_blocks: str | None = arg(
        TUNING,
        None,
        "Train these blocks of the model alone, or put LoRA on them: A:B counts from 0 and leaves B out, -3: is the "
        "last three. What the blocks below give is computed once for every row. none: all of the model; guided, -3:.",
    )
    kept_states: str | None = arg(
        TUNING,
        None,
        "With train_blocks: folder for what the frozen blocks below give, which runs may share. none: kept_states in "
        "output_dir.",
    )
    guide_coefficients: bool = arg(
        TRAINING,
        False,
        "guided: weigh the blocks' directions by what probes with random signs tell of each; one that does not help "
        "stops moving. Two forward passes more where a step is probed.",
    )
    guide_noise: float = arg(
        TRAINING,
        0.0,
        "guided: norm of a random direction that is mixed in, over the guide's own. Every step is probed then.",
    )
    sampling: bool = arg(GENERATION, False, "Sample the text. False: greedy, or beam search with num_beams.")
    temperature: float = arg(GENERATION, 1.0, "Sampling temperature; below 1 sharpens. Only with sampling.")
    num_beams: int = arg(GENERATION, 1, "Beams; 1: no beam search.")
    top_k: int | None = arg(GENERATION, None, "Sample among the k likeliest tokens. none: no such limit.")
    top_p: float = arg(GENERATION, 0.95, "Sample among the likeliest tokens that make up this probability.")
    max_new_tokens: int = arg(GENERATION, 50, "Longest generated text in tokens; less than max_length.")
    eos_token: str = arg(
        GENERATION,
        "\n",
        "Text before which a generated answer ends, besides the model's own end tokens. In bash: $'\\n'.",
    )
    generator: str = arg(
        GENERATION,
        "transformers",
        "Who writes the text. vllm: that engine, for rewards and answers on a GPU; MeZO moves the weights in place and "
        "back from a copy, and hands them over at every probe (docs/own-reward.md). Not run with vLLM itself so far.",
        choices=("transformers", "vllm"),
    )
    generator_memory: float = arg(
        GENERATION, 0.3, "With vllm: the share of the GPU's memory that it takes, for its own weights and its cache."
    )
    result_file: str | None = arg(
        OUTPUT, None, "JSON file for the metrics. none: result/ and a name made of task, model and settings."
    )
    tag: str = arg(OUTPUT, "", "A word to tell runs apart, added to the result file's name.")
    save_model: bool = arg(OUTPUT, False, "Save the trained model to output_dir.")
    verbose: bool = arg(
        OUTPUT, False, "Log every prompt, its options and their scores. False: those of the first three samples."
    )

    def record(self) -> dict[str, Any]:
        """The arguments as JSON values, for the records of a run.

        Those that later versions brought stand there where they say something: a run begun before them goes on with
        the same log.
        """
        values = dataclasses.asdict(self)
        plain = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) == field.default}
        return {name: value for name, value in values.items() if name not in plain & LATER_ARGUMENTS}

    @property
    def is_training(self) -> bool:
        """Whether the job trains before it evaluates."""
        return self.trainer != "none"

    @property
    def dtype(self) -> str:
        """The weights' type: "float32", "float16", "bfloat16", "int8" or "4bit"."""
        chosen = [name for name in ("float16", "bfloat16", "int8", "4bit") if getattr(self, f"load_{name}")]
        return chosen[0] if chosen else "float32"


LATER_ARGUMENTS = {
    *("zo_method", "zo_directions", "zo_rule", "zo_sides", "zo_split", "zo_rank", "zo_refresh"),
    *("zo_sparsity", "zo_angle", "zo_beta", "zo_beta1", "zo_beta2", "zo_window"),
    *("train_blocks", "kept_states", "guide_coefficients", "guide_noise"),
    *("chat_template", "system_prompt", "base_model"),
    *("load_4bit", "tune_scales", "zo_clip"),
    *("reward_timeout", "reward_retries", "num_completions"),
    *("generator", "generator_memory"),
}
