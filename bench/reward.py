"""A reward without gradient: F1 of generated answers, optimised with and without a guide, at the same forward passes.

Run: python -m bench.reward [--seeds 0 1 2] [--only MeZO]
Needs the model that `make demo` prepares.

Rows are SQuAD-like and made here: a few sentences of facts, and a question whose answer is a span of them. A pass
counts as one, whether it generates or scores. The last three blocks are trained, in bfloat16 where the processor has
it. Of MeZO there is a line for each of RATES: the best of them is chosen in its favour.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.common import report
from bench.methods import _half
from examples.demo import CACHE, precision, prepare

TRAIN, HELD_OUT, STEPS = 200, 60, 40
PASSES = STEPS + 4 * 8
"""Of a guided run: one a step, and four more where a step is probed (of the likelihood and of the reward)."""

RATES = ("3e-5", "1e-4", "3e-4")
PLACES = ("Gdansk", "Oslo", "Perth", "Leeds", "Quito", "Turin", "Lagos", "Kyoto")
THINGS = ("library", "bridge", "garden", "museum", "reservoir", "theatre")
NAMES = ("Tom Becker", "Li Wei", "Aisha Khan", "Ivan Petrov", "Rosa Diaz", "Nils Holm")


def row(number: int, chance: random.Random) -> dict[str, Any]:
    """Facts, a question and its answer."""
    place, home = chance.sample(PLACES, 2)
    thing, name = chance.choice(THINGS), chance.choice(NAMES)
    visitors, rooms, year = chance.randint(100, 999), chance.randint(10, 99), chance.randint(1850, 1999)
    facts = [
        f"In {year}, {name} repaired the {thing} of {place}.",
        f"About {visitors} people visit the {thing} every week; most of them live in {home}.",
        f"The {thing} has {rooms} rooms.",
    ]
    chance.shuffle(facts)
    asked = {
        f"How many people visit the {thing} every week?": str(visitors),
        f"Who repaired the {thing}?": name,
        f"How many rooms does the {thing} have?": str(rooms),
        "Where do most of the visitors live?": home,
        f"When was the {thing} repaired?": str(year),
    }
    question, answer = chance.choice(list(asked.items()))
    context = " ".join(facts)
    found = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"id": f"row-{number}", "title": thing, "context": context, "question": question, "answers": found}


def write_rows(folder: Path) -> None:
    """Train and validation rows, as the task reads them."""
    chance = random.Random(0)
    (folder / "SQuAD").mkdir(parents=True)
    for name, count in (("train", TRAIN), ("validation", HELD_OUT)):
        lines = [json.dumps(row(i, chance)) for i in range(count)]
        (folder / "SQuAD" / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def f1(folder: Path, *words: str) -> float:
    """Of the held-out rows, after what the words say."""
    out = folder / "result.json"
    command = [sys.executable, "-m", "justforward", "--task_name", "SQuAD", "--data_dir", str(folder / "data")]
    command += ["--model_name", str(CACHE / "model"), *precision(), "--max_new_tokens", "12", "--disable_tqdm"]
    command += ["--output_dir", str(folder / "out"), "--overwrite_output_dir", "--result_file", str(out), *words]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads(out.read_text())["f1"]


def main(words: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="A reward with and without a guide.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", default="", help="the beginning of the lines to measure")
    given = parser.parse_args(words if words is not None else [])
    seeds = given.seeds
    prepare()
    training = ["--num_train", str(TRAIN), "--per_device_train_batch_size", "8", "--train_blocks=-3:"]
    training += ["--save_strategy", "no", "--lr_scheduler_type", "linear"]
    # A probe just in time would draw its noise again for every token that is generated.
    mezo = ["--trainer", "zo", "--zo_probe", "copy", "--non_diff", "--max_steps", str(PASSES // 2)]
    ways = {
        "guided by the likelihood, for F1": ["--trainer", "guided", "--non_diff", "--max_steps", str(STEPS)],
        "guided, for the likelihood": ["--trainer", "guided", "--max_steps", "52"],
        **{f"MeZO for F1, {rate}": [*mezo, "--learning_rate", rate] for rate in RATES},
    }
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_rows(folder / "data")
        training += ["--kept_states", str(folder / "kept")]
        report("reward: before", f1=round(f1(folder, "--num_train", "0"), 4))
        for name, how in ((name, how) for name, how in ways.items() if name.startswith(given.only)):
            found = [f1(folder, *training, *how, "--train_set_seed", str(s), "--seed", str(s)) for s in seeds]
            told: dict[str, Any] = {"f1": round(statistics.fmean(found), 4), "half": round(_half(found), 4)}
            report(f"reward: {name}", **told, values=[round(value, 4) for value in found], passes=PASSES)


if __name__ == "__main__":
    main(sys.argv[1:])
