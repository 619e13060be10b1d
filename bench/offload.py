"""Training a model whose weights exceed the memory that the process may have.

Run: python -m bench.offload [STEPS [LIMIT_MB]]
Linux, root: a control group of 1,000 MB holds run.py while it trains an OPT-350m shape in float32 (1,325 MB of
weights) with `--zo_offload disk`, and the same job without. The log of its steps is compared with that of a job that
nothing limits. The model is not saved: safetensors writes a file from a copy of it in memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.common import report
from bench.memory import save
from justforward.optim.log import FILE_NAME, read

NEEDS_ROOT = True

ROOT = Path("/sys/fs/cgroup")
DATA = Path(__file__).parents[1] / "tests" / "fixtures" / "golden" / "data"


@contextmanager
def limited(megabytes: int) -> Iterator[Path]:
    """A control group that may use so much memory (version 1 or 2 of the interface), swap included."""
    first = (ROOT / "memory").is_dir()
    group = (ROOT / "memory" if first else ROOT) / f"justforward{os.getpid()}"
    group.mkdir()
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if first else ("memory.max",)
    try:
        for name in names:
            if (group / name).exists():
                (group / name).write_text(str(megabytes * 10**6))
        yield group
    finally:
        group.rmdir()


def train(folder: Path, steps: int, group: Path | None, more: Sequence[str]) -> tuple[int, float, str]:
    """Run the job; its exit code, seconds, and what it said."""
    # fmt: off
    command = [sys.executable, "-m", "justforward", "--model_name", str(folder / "model"), "--task_name", "SST2",
               "--data_dir", str(DATA), "--use_cpu", "--trainer", "zo", "--train_as_classification", "--num_train", "8",
               "--num_eval", "4", "--train_set_seed", "0", "--learning_rate", "1e-5", "--max_steps", str(steps),
               "--per_device_train_batch_size", "4", "--save_strategy", "no", "--disable_tqdm", "--logging_steps", "1",
               "--output_dir", str(folder / "out"), "--overwrite_output_dir", "--result_file", str(folder / "r.json"),
               *more]
    # fmt: on
    join = None if group is None else (lambda: (group / "cgroup.procs").write_text(str(os.getpid())))
    started = time.perf_counter()
    ran = subprocess.run(command, capture_output=True, text=True, preexec_fn=join, check=False)
    return ran.returncode, time.perf_counter() - started, ran.stderr[-2000:]


def main(steps: str = "5", megabytes: str = "1000") -> None:
    """See the module."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        save(str(folder / "model"), "350m")
        weights = sum(f.stat().st_size for f in (folder / "model").glob("*.safetensors"))
        code, free, said = train(folder, int(steps), None, ["--zo_probe", "just_in_time"])
        assert code == 0, said
        expected = read(folder / "out" / FILE_NAME).steps
        with limited(int(megabytes)) as group:
            code, seconds, said = train(folder, int(steps), group, ["--zo_offload", "disk"])
            assert code == 0, said
        equal = read(folder / "out" / FILE_NAME).steps == expected
        with limited(int(megabytes)) as group:
            without, _, _ = train(folder, int(steps), group, [])
    report(
        f"weights of {weights // 10**6} MB in {megabytes} MB of memory, {steps} steps",
        equal_to_unlimited=equal,
        seconds={"unlimited": round(free, 1), "limited": round(seconds, 1)},
        exit_code_without_offload=without,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
