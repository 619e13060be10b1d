"""A job's own arguments, each with its help and default; `specs.job_specs` makes them command-line arguments.

Names, types and defaults are the interface that users' scripts rely on: they are frozen by tests/fixtures/cli.json.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from justforward.optim.methods import METHODS

DATA = "Task and data"
MODEL = "Model"
EVALUATION = "Evaluation"
TRAINING = "Training"
MEZO = "MeZO"
TUNING = "Tuning (full parameters where none is given)"
GENERATION = "Generation"
OUTPUT = "Output"


def _arg(group: str, default: Any, text: str, *, choices: tuple[str, ...] = (), aliases: tuple[str, ...] = ()) -> Any:
    metadata = {"group": group, "help": text, "choices": choices or None, "aliases": aliases}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobArguments:
    """What to do with which model on which task. `specs.job_specs` makes command-line arguments of the fields."""

    task_name: str = _arg(
        DATA,
        "SST2",
        "The task: SST2, RTE, CB, BoolQ, WSC, WIC, MultiRC, Copa, ReCoRD, SQuAD, DROP, or one that a plug-in adds. "
        "TASK__SUBTASK picks a subtask of a task that has them; lm_eval:NAME is a task of an installed lm_eval "
        "(docs/lm-eval.md).",
    )
    task_file: str | None = _arg(
        DATA,
        None,
        "Instead of task_name: a task of your own in a TOML file, which says where the rows are and what the prompt "
        "is, or in a Python file, which registers it. docs/own-task.md shows how.",
    )
    data_dir: str | None = _arg(
        DATA,
        None,
        "Read the rows from DIR/<Task>/train.jsonl and DIR/<Task>/validation.jsonl (one JSON object per line, the "
        "hub's columns) instead of downloading them. For machines without network, and for your own data.",
    )
    num_train: int = _arg(
        DATA,
        0,
        "Without a trainer: demonstrations in the prompt (0: zero-shot). With a trainer: training samples.",
    )
    num_dev: int | None = _arg(
        DATA,
        None,
        "Development samples, on which checkpoints are compared. They are drawn from the training split together "
        "with the num_train samples and share none with them. Only with a trainer; 0 is the same as none.",
    )
    num_eval: int | None = _arg(
        DATA,
        None,
        "Samples to evaluate on, drawn from the validation split with the train set's seed (0 without one). "
        "none: the whole split.",
        aliases=("num_test",),
    )
    num_train_sets: int | None = _arg(
        DATA,
        None,
        "Repeat the job on this many train (or demonstration) sets, drawn with the seeds 0, 1, 2, ...; each writes "
        "its own result file. Excludes train_set_seed.",
    )
    train_set_seed: int | None = _arg(
        DATA,
        None,
        "Seed of the one train (or demonstration) set. With neither this nor num_train_sets, every evaluation "
        "sample gets demonstrations of its own; that is possible only without a trainer.",
    )

    model_name: str = _arg(
        MODEL, "facebook/opt-125m", "Hub id, or path of a folder that save_pretrained wrote: a model, or an adapter."
    )
    base_model: str | None = _arg(
        MODEL, None, "The base of an adapter that model_name names. none: as the adapter says."
    )
    trust_remote_code: bool = _arg(
        MODEL, False, "Let a model repository run its own Python code. Only for repositories that you have read."
    )
    load_float16: bool = _arg(MODEL, False, "Weights in float16. With none of the load_ arguments: float32.")
    load_bfloat16: bool = _arg(MODEL, False, "Weights in bfloat16.")
    load_int8: bool = _arg(MODEL, False, "Layers' weights rounded to 8-bit integers; only adapters train over them.")
    max_length: int = _arg(
        MODEL,
        2048,
        "Longest input in tokens. Longer prompts lose tokens on the left, after the beginning-of-sequence token; "
        "when generating, max_new_tokens are kept free.",
    )
    no_auto_device: bool = _arg(
        MODEL, False, "Do not spread the layers over all visible GPUs. FSDP and distributed launchers need this."
    )
    bos_token_id: int | None = _arg(
        MODEL,
        None,
        "Token put before every prompt. none: 0 for OPT models, as in the published runs; for others what their "
        "tokenizer adds.",
    )

    sfc: bool = _arg(
        EVALUATION,
        False,
        "Calibrate: subtract each option's score after a prompt without the sample's content "
        "(surface-form competition). Classification and multiple choice only.",
    )
    icl_sfc: bool = _arg(
        EVALUATION, False, "The same, with the demonstrations in front of that prompt. Needs num_train, no trainer."
    )
    token_budget: int | None = _arg(
        EVALUATION,
        None,
        "Most tokens in one forward batch of the evaluation, padding included. Lower it when memory runs out. "
        "none: 2048 on a CPU, 16384 on a GPU.",
    )
    chat_template: bool = _arg(
        EVALUATION,
        False,
        "Prompts are turns of a conversation, by the tokenizer's own chat template; options and answers stand in the "
        "assistant's turn. False: plain texts, unless a task file says chat = true.",
    )
    system_prompt: str | None = _arg(
        EVALUATION, None, "With chat_template: what the conversation begins with. none: what the template says."
    )
    no_eval: bool = _arg(EVALUATION, False, "Skip the evaluation that follows training.")

    trainer: str = _arg(
        TRAINING,
        "none",
        "none: evaluate only (zero-shot or in-context learning). zo: MeZO, forward passes only. "
        "guided: forward passes only, along directions that hidden states and logits tell (docs/guided.md); unless "
        "given, --train_blocks is -3: and --learning_rate 1, a factor of the measured step. "
        "regular: fine-tuning by backpropagation.",
        choices=("none", "regular", "zo", "guided"),
    )
    only_train_option: bool = _arg(
        TRAINING, True, "Take the loss on the option or answer alone. False: on the whole text, prompt included."
    )
    train_as_classification: bool = _arg(
        TRAINING,
        False,
        "Cross-entropy over all options' mean token log-probabilities. False: language-model loss on the right "
        "option. Not for tasks that generate (SQuAD, DROP).",
    )
    save_on_interrupt: bool = _arg(
        TRAINING,
        False,
        "On SIGUSR1 or SIGINT finish the step, save a checkpoint and stop, instead of stopping at once; a second "
        "SIGINT stops at once. The same command given again continues from there.",
    )
    overwrite_output_dir: bool = _arg(
        TRAINING,
        False,
        "Delete the checkpoints in output_dir and start anew. False: continue from the last one if this job made it; "
        "an error if another job did.",
    )

    zo_method: str = _arg(
        MEZO,
        "mezo",
        "What a step is: a combination of the arguments below with the settings of its source (docs/estimators.md); "
        "each of them can be given as well, and wins.",
        choices=tuple(METHODS),
    )
    zo_directions: str | None = _arg(
        MEZO,
        None,
        "Where directions come from: dense (a number for every weight), low_rank, subspace, outer, flipped, sparse, "
        "cone. none: the method's.",
        choices=("dense", "low_rank", "subspace", "outer", "flipped", "sparse", "cone"),
    )
    zo_rule: str | None = _arg(
        MEZO,
        None,
        "What is made of the estimates: sgd, sign, momentum, adam, or moments rebuilt from the log of the last steps. "
        "none: the method's.",
        choices=("sgd", "sign", "momentum", "adam", "rebuilt_momentum", "rebuilt_adam"),
    )
    zo_sides: int = _arg(
        MEZO,
        2,
        "2: two forward passes for every direction, on both sides of the weights. 1: one for every direction, and one "
        "at the weights.",
    )
    zo_split: bool = _arg(
        MEZO,
        False,
        "Every direction probes a share of the batch of its own, all in the same two forward passes: --zo_samples "
        "directions cost no more than one.",
    )
    zo_rank: int | None = _arg(MEZO, None, "Of low_rank, subspace and outer: the rank. none: the method's, as below.")
    zo_refresh: int | None = _arg(MEZO, None, "Of low_rank and subspace: steps until a new subspace is drawn.")
    zo_sparsity: float | None = _arg(MEZO, None, "Of sparse: the share of weights that are left alone.")
    zo_angle: float | None = _arg(MEZO, None, "Of cone: its half angle around the momentum, in radians.")
    zo_beta: float | None = _arg(MEZO, None, "Of cone: decay of the momentum.")
    zo_beta1: float | None = _arg(MEZO, None, "Of momentum and adam, rebuilt or not: decay of the first moment.")
    zo_beta2: float | None = _arg(MEZO, None, "Of adam, rebuilt or not: decay of the second moment.")
    zo_window: int | None = _arg(MEZO, None, "Of rebuilt moments: steps that they are made of.")
    zo_eps: float = _arg(
        MEZO,
        1e-3,
        "Distance of the two probes from the weights: the loss is measured at theta + eps z and theta - eps z. "
        "auto: a probe of about 200 forward passes before training finds it.",
    )
    zo_samples: int = _arg(
        MEZO, 1, "Directions per step (n-SPSA): twice as many forward passes each, for a less noisy step."
    )
    zo_direction_groups: int = _arg(
        MEZO,
        1,
        "Of several processes: into how many groups they are split, each probing its share of the zo_samples "
        "directions. 1: all share the data of a step; as many as processes: each has directions of its own.",
    )
    zo_check_steps: int = _arg(
        MEZO, 100, "After so many steps all processes compare checksums of their weights; 0: never."
    )
    zo_shaping: str = _arg(
        MEZO,
        "none",
        "What a step differences: the losses (none), their ranks or z-scores among the step's probes, or the losses "
        "over their deviation; spread divides the projected gradients by their root mean square in the step, "
        "second_moment by that of all steps so far. All but none want another learning rate; ranks and z-scores help "
        "with coarse metrics (non_diff).",
        choices=("none", "rank", "zscore", "deviation", "spread", "second_moment"),
    )
    zo_distribution: str = _arg(
        MEZO,
        "gaussian",
        "Distribution of the directions: gaussian, as published, or rademacher (+1 or -1), cheaper to draw.",
        choices=("gaussian", "rademacher"),
    )
    zo_rounding: str = _arg(
        MEZO,
        "stochastic",
        "How updates of 16-bit weights are rounded: stochastic (unbiased), nearest (loses small updates), compensated "
        "(keeps what is lost in 2 more bytes per weight).",
        choices=("stochastic", "nearest", "compensated"),
    )
    zo_probe: str = _arg(
        MEZO,
        "auto",
        "How weights are moved to measure. paired, just_in_time: a layer at a time, in scratch, leaving every bit of "
        "them (paired: both signs in one forward where that is faster). copy: in place and back from a copy, for small "
        "trainable sets and for torch_compile. in_place: as published; rounds. auto: paired, and up to 64 MB copy "
        "where pairs are not faster.",
        choices=("auto", "paired", "just_in_time", "copy", "in_place"),
    )
    zo_offload: str = _arg(
        MEZO,
        "none",
        "For models larger than the device: cpu keeps the weights in host memory and copies a layer at a time to the "
        "device; disk keeps them in a mapped file in output_dir, which may be larger than memory too.",
        choices=("none", "cpu", "disk"),
    )
    save_trajectory: bool = _arg(
        MEZO,
        False,
        "Checkpoints hold no weights: they are marks in the log of the run (trajectory.log in output_dir), from which "
        "the weights are replayed.",
    )
    non_diff: bool = _arg(
        MEZO,
        False,
        "Optimise a reward that has no gradient instead of a loss: the task's metric of the generated text or of the "
        "predicted option, or what --reward names.",
    )
    reward: str | None = _arg(
        MEZO,
        None,
        "With non_diff: f1, em or accuracy, or your own function as MODULE:FUNCTION, which maps (samples, outputs) to "
        "one number per sample, larger is better. none: the task's metric.",
    )
    zo_max_skipped: int = _arg(
        MEZO,
        20,
        "Stop with an error after this many steps in a row whose loss was not finite; a single such step is skipped "
        "and logged.",
    )

    lora: bool = _arg(TUNING, False, "LoRA on the query and value projections.")
    lora_alpha: int = _arg(TUNING, 16, "LoRA scale: the update is multiplied by lora_alpha / lora_r.")
    lora_r: int = _arg(TUNING, 8, "LoRA rank: the inner width of each update.")
    prefix_tuning: bool = _arg(TUNING, False, "Prefix-tuning: trained keys and values before every layer's own.")
    num_prefix: int = _arg(TUNING, 5, "Prefix length in tokens.")
    no_reparam: bool = _arg(
        TUNING,
        True,
        "Train the prefix itself. False: train it through an MLP, which needs prefix_init_by_real_act False.",
    )
    prefix_init_by_real_act: bool = _arg(
        TUNING, True, "Start the prefix from the model's activations on random tokens. False: from random numbers."
    )
    merge_lora: bool = _arg(
        TUNING,
        False,
        "With save_model: add LoRA's updates to the weights and save the plain model, instead of the adapter.",
    )
    head_tuning: bool = _arg(
        TUNING, False, "Train the language-model head only; it gets weights of its own where it shares the embedding's."
    )
    linear_probing: bool = _arg(
        TUNING,
        False,
        "Fit the head by logistic regression on the last hidden state at the option's position. With trainer regular.",
    )
    lp_early_stopping: bool = _arg(
        TUNING,
        False,
        "Stop the logistic regression at tolerance 0.01 or 1,000 iterations. False: at 1e-4 or 5,000.",
    )
    untie_emb: bool = _arg(TUNING, False, "Give the head weights of its own where it shares the input embedding's.")

    train_blocks: str | None = _arg(
        TUNING,
        None,
        "Train these blocks of the model alone, or put LoRA on them: A:B counts from 0 and leaves B out, -3: is the "
        "last three. What the blocks below give is computed once for every row. none: all of the model; guided, -3:.",
    )
    kept_states: str | None = _arg(
        TUNING,
        None,
        "With train_blocks: folder for what the frozen blocks below give, which runs may share. none: kept_states in "
        "output_dir.",
    )

    guide_coefficients: bool = _arg(
        TRAINING,
        False,
        "guided: weigh the blocks' directions by what probes with random signs tell of each; one that does not help "
        "stops moving. Two forward passes more where a step is probed.",
    )
    guide_noise: float = _arg(
        TRAINING,
        0.0,
        "guided: norm of a random direction that is mixed in, over the guide's own. Every step is probed then.",
    )

    sampling: bool = _arg(GENERATION, False, "Sample the text. False: greedy, or beam search with num_beams.")
    temperature: float = _arg(GENERATION, 1.0, "Sampling temperature; below 1 sharpens. Only with sampling.")
    num_beams: int = _arg(GENERATION, 1, "Beams; 1: no beam search.")
    top_k: int | None = _arg(GENERATION, None, "Sample among the k likeliest tokens. none: no such limit.")
    top_p: float = _arg(GENERATION, 0.95, "Sample among the likeliest tokens that make up this probability.")
    max_new_tokens: int = _arg(GENERATION, 50, "Longest generated text in tokens; less than max_length.")
    eos_token: str = _arg(
        GENERATION,
        "\n",
        "Text before which a generated answer ends, besides the model's own end tokens. In bash: $'\\n'.",
    )

    result_file: str | None = _arg(
        OUTPUT, None, "JSON file for the metrics. none: result/ and a name made of task, model and settings."
    )
    tag: str = _arg(OUTPUT, "", "A word to tell runs apart, added to the result file's name.")
    save_model: bool = _arg(OUTPUT, False, "Save the trained model to output_dir.")
    verbose: bool = _arg(
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
        """The weights' type: "float32", "float16", "bfloat16" or "int8"."""
        chosen = [name for name in ("float16", "bfloat16", "int8") if getattr(self, f"load_{name}")]
        return chosen[0] if chosen else "float32"


LATER_ARGUMENTS = {
    *("zo_method", "zo_directions", "zo_rule", "zo_sides", "zo_split", "zo_rank", "zo_refresh"),
    *("zo_sparsity", "zo_angle", "zo_beta", "zo_beta1", "zo_beta2", "zo_window"),
    *("train_blocks", "kept_states", "guide_coefficients", "guide_noise"),
    *("chat_template", "system_prompt", "base_model"),
}
