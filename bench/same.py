"""Whether two states of the sources do the same: ten jobs on each, their files held against each other to the bit.

Run: git worktree add ../before COMMIT; python -m bench.same ../before/src src
Exit code 1 where a file differs. What tells of the moment (seconds, dates, memory, versions) is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
WHERE = f"--model_name {FIXTURES}/tiny-opt-4k --data_dir {FIXTURES}/golden/data --use_cpu --disable_tqdm"
TRAIN = (
    f"{WHERE} --num_train 16 --num_dev 8 --num_eval 8 --train_set_seed 0 --per_device_train_batch_size 8 "
    "--max_steps 8 --learning_rate 1e-3 --weight_decay 0.1 --eval_strategy steps --eval_steps 4 --save_strategy steps "
    "--save_steps 4 --save_model --logging_steps 1 --output_dir out --result_file r.json"
)
ZO = f"{TRAIN} --trainer zo"
JOBS = {
    "zero-shot": f"--task_name Copa {WHERE} --result_file r.json",
    "in-context, calibrated": f"--task_name SST2 {WHERE} --num_train 4 --num_eval 8 --icl_sfc --result_file r.json",
    "generation": f"--task_name SQuAD {WHERE} --num_train 2 --num_eval 6 --max_new_tokens 8 --result_file r.json",
    "MeZO": f"--task_name SST2 {ZO} --train_as_classification --lr_scheduler_type linear",
    "MeZO, bfloat16, two directions": f"--task_name RTE {ZO} --load_bfloat16 --zo_samples 2 --zo_shaping rank",
    "MeZO, LoRA, compensated": f"--task_name Copa {ZO} --lora --load_float16 --zo_rounding compensated",
    "MeZO, prefix, marks": f"--task_name CB {ZO} --prefix_tuning --save_trajectory --zo_distribution rademacher",
    "MeZO on F1": f"--task_name SQuAD {ZO} --non_diff --max_new_tokens 4 --eval_strategy no --max_steps 4",
    "backpropagation": f"--task_name WIC {TRAIN} --trainer regular --train_as_classification",
    "linear probing": f"--task_name SST2 {WHERE} --trainer regular --linear_probing --num_train 8 --train_set_seed 0 "
    "--output_dir out --result_file r.json",
}
MOMENT = {"seconds", "train_seconds", "seconds_per_step", "peak_memory_mib", "date", "versions"}
MOMENT |= {"train_runtime", "train_samples_per_second", "train_steps_per_second", "steps_per_second", "total_flos"}
MOMENT |= {f"eval_{name}" for name in ("runtime", "samples_per_second", "steps_per_second")}
SKIPPED = {"training_args.bin", "README.md"}
"""Pickled objects and notes."""


def run(sources: Path, words: str, folder: Path) -> dict[str, str]:
    """Run a job on some sources; a digest of every file that it leaves."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(sources.resolve()), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "justforward", *shlex.split(words)]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{ran.stderr[-3000:]}")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in SKIPPED)
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.suffix == ".json":
        data = json.dumps(_timeless(json.loads(data)), sort_keys=True).encode()
    elif path.name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        data = str(len(data)).encode()  # archives hold names of temporary folders
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in MOMENT}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Compare, and say of every job how many files are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a folder that holds the package")
    parser.add_argument("after", type=Path, help="another one")
    given = parser.parse_args()
    different = 0
    with tempfile.TemporaryDirectory() as scratch:
        for i, (name, words) in enumerate(JOBS.items()):
            before, after = (
                run(s, words, Path(scratch, f"{i}-{j}")) for j, s in enumerate((given.before, given.after))
            )
            unequal = sorted(file for file in before.keys() | after.keys() if before.get(file) != after.get(file))
            different += len(unequal)
            print(
                f"{name}: {len(before)} files, {'equal' if not unequal else 'different: ' + ', '.join(unequal)}",
                flush=True,
            )
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
