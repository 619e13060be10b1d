"""The words of `justforward sweep`: its own, and the job's, which are those of run.py."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from justforward import launcher
from justforward.command_line.arguments import Parsed
from justforward.command_line.arguments import parse as parse_job
from justforward.command_line.job import JobArguments
from justforward.command_line.parser import Parser

PAPER_RANGES = {
    "full": ((1e-7, 1e-6), (1e-3,)),
    "lora": ((5e-5, 1e-4), (1e-2,)),
    "prefix": ((1e-3, 1e-2), (1e-1,)),
    "head": ((1e-7, 1e-6), (1e-3,)),
}
"""Learning rates (lowest, highest) and sizes of the probe, from the MeZO paper's grids for OPT-13B; the head is not in
it and has those of all parameters."""

_SET_BY_SWEEP = {
    "learning_rate": "give --lr LOW:HIGH",
    "zo_eps": "give --eps",
    "seed": "give --seeds",
    "output_dir": "runs are kept beside --storage",
    "result_file": "results are kept beside --storage",
    "num_train_sets": "give one set with --train_set_seed",
    "no_eval": "runs are never evaluated on the evaluation samples: leave it out",
    "overwrite_output_dir": "give another --storage to start anew",
    "resume_from_checkpoint": "the same command continues by itself: leave it out",
    "save_on_interrupt": "the same command continues by itself: leave it out",
}


@dataclass(frozen=True)
class SweepOptions:
    """What to search, and the job that every run is.

    base: the job without learning rate, size of the probe, seed and output folder; only development samples count.
    words: the same as a command line, as it was given.
    """

    trials: int
    seeds: tuple[int, ...]
    best: int
    sampler: str
    storage: Path
    lr: tuple[float, float]
    eps: tuple[float, ...]
    base: Parsed
    words: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """What a continued sweep must have in common with its beginning, JSON values."""
        searched = {"sampler": self.sampler, "lr": list(self.lr), "eps": list(self.eps), "seed": self.seeds[0]}
        return {"arguments": list(self.words), **searched}


def parse(words: Sequence[str]) -> SweepOptions:
    """The options. Raises ValueError, one line, for what cannot work."""
    parser = Parser(
        prog="justforward sweep",
        usage="justforward sweep [options] [run.py arguments]",
        description="Search learning rate and probe size; the development set decides. The same command continues.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--trials", type=int, default=12, help="settings to try with the first seed (default: 12)")
    parser.add_argument("--seeds", default="0,1,2", help="the best settings run with all of these (default: 0,1,2)")
    parser.add_argument("--best", type=int, default=3, help="so many settings run with all seeds (default: 3)")
    parser.add_argument("--lr", help="LOW:HIGH, searched on a logarithmic scale (default: the paper's for the tuning)")
    parser.add_argument("--eps", help="sizes of the probe to try, such as 1e-3,1e-2 (default: the paper's)")
    parser.add_argument("--sampler", choices=("tpe", "grid"), default="tpe", help="default: tpe")
    parser.add_argument("--storage", type=Path, help="the sweep's log (default: result/sweep-TASK-MODEL.log)")
    own, rest = parser.parse_known_args(words)
    base = parse_job(rest)
    _check(own, rest, base)
    method = next((name for name in ("lora", "prefix", "head") if _tunes(base.job, name)), "full")
    lr, eps = PAPER_RANGES[method]
    name = f"sweep-{base.job.task_name}-{Path(base.job.model_name).name}.log"
    return SweepOptions(
        trials=own.trials,
        seeds=_seeds(own.seeds),
        best=own.best,
        sampler=own.sampler,
        storage=own.storage or Path("result") / name,
        lr=_range(own.lr) if own.lr else lr,
        eps=tuple(_positive("--eps", word) for word in own.eps.split(",")) if own.eps else eps,
        base=_with_evaluations(base),
        words=tuple(_without_output_dir(base)),
    )


def _check(own: argparse.Namespace, rest: Sequence[str], base: Parsed) -> None:
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in rest if word.startswith("--")}
    for name, mend in _SET_BY_SWEEP.items():
        if name in given:
            raise ValueError(f"justforward sweep sets --{name} itself: {mend}")
    job = base.job
    rules = (
        (own.trials < 1 or own.best < 1, "--trials and --best must be at least 1"),
        (job.trainer != "zo", "searches settings of MeZO: give --trainer zo"),
        (
            not job.num_dev,
            "chooses on the development set, never on the evaluation samples: give --num_dev, such as --num_dev 500",
        ),
        (job.train_set_seed is None, "searches on one train set: give --train_set_seed 0"),
        (
            str(base.training_kwargs.get("eval_strategy", "steps")) == "no",
            "compares runs by their evaluations on the development set: leave out --eval_strategy no",
        ),
        (launcher.find().size > 1, "runs in one process: start it without torchrun"),
        (
            own.storage is not None and own.storage.suffix in ("", ".json"),
            f"--storage {own.storage}: name a log, such as sweep.log; runs and results are kept beside it",
        ),
    )
    for broken, message in rules:
        if broken:
            raise ValueError(f"justforward sweep: {message}")


def _tunes(job: JobArguments, method: str) -> bool:
    return {"lora": job.lora, "prefix": job.prefix_tuning, "head": job.head_tuning}[method]


def _with_evaluations(base: Parsed) -> Parsed:
    """Four evaluations a run, and no checkpoints where none are asked for: the log of the run suffices to resume."""
    kwargs = base.training_kwargs
    added: dict[str, Any] = {"no_eval": True}
    if "eval_strategy" not in kwargs:
        added |= {"eval_strategy": "steps", "eval_steps": kwargs.get("eval_steps", 0.25)}
    if "save_strategy" not in kwargs and not kwargs.get("load_best_model_at_end"):
        added["save_strategy"] = "no"
    return base.with_values(added)


def _without_output_dir(base: Parsed) -> list[str]:
    words = base.command_line()
    place = words.index("--output_dir")
    return words[:place] + words[place + 2 :]


def _seeds(text: str) -> tuple[int, ...]:
    words = text.split(",")
    seeds = tuple(int(word) for word in words if word.strip().isdecimal() and len(word) < 12)
    if len(set(seeds)) < len(words) or max(seeds) >= 2**32:
        raise ValueError(f"justforward sweep: --seeds {text}: give different seeds below 2**32, such as 0,1,2")
    return seeds


def _range(text: str) -> tuple[float, float]:
    low, colon, high = text.partition(":")
    ends = _positive("--lr", low), _positive("--lr", high if colon else low)
    if ends[0] > ends[1]:
        raise ValueError(f"justforward sweep: --lr {text}: the lowest comes first, such as 1e-7:1e-6")
    return ends


def _positive(name: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        example = "1e-7:1e-6" if name == "--lr" else "1e-3,1e-2"
        raise ValueError(f"justforward sweep: {name}: '{word}' is no number above 0; written {name} {example}")
    return value


_EPILOG = """\
All other arguments are those of a job (justforward --help), which needs --trainer zo, --num_dev and --train_set_seed.
The result is a .json beside the storage, the runs are in a folder beside it. Needs pip install 'justforward[sweep]'.

example:
  justforward sweep --trials 12 --seeds 0,1,2 --lr 1e-6:1e-4 --eps 1e-3,1e-2 --task_name SST2 \\
    --model_name path/to/model --trainer zo --train_as_classification --num_train 1000 --num_dev 200 \\
    --train_set_seed 0 --max_steps 1000 --lr_scheduler_type constant
"""
