"""`justforward doctor`: what this environment has, how fast it is, what is missing, and the mend for each.

Every check stands alone: one that fails is a finding, and the others still run. Heavy libraries are imported inside.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from justforward import machine
from justforward.command_line.parser import Parser
from justforward.compat import installed_version, standing
from justforward.machine import GIB

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy", "numba", "packaging", "triton")
FOR = {
    "demo": "make demo",
    "quant": "8- and 4-bit weights (--load_int8, --load_4bit)",
    "lm_eval": "tasks of lm_eval (--task_name lm_eval:NAME), and the peer in the benchmarks",
    "plots": "the plots of justforward report",
    "sweep": "justforward sweep",
    "vllm": "rewards of texts that vLLM writes (--generator vllm)",
    "docs": "make docs",
    "dev": "tests and lint",
}
"""What each optional extra is for."""

LITTLE_DISK = 5 * GIB
LITTLE_MEMORY = 4 * GIB


@dataclass(frozen=True)
class Finding:
    """One line of the report. status: "ok", "slow", "missing" or "broken"; mend: what to do, where it is not ok."""

    section: str
    name: str
    value: str
    status: str = "ok"
    mend: str = ""


def doctor_command(words: list[str]) -> None:
    """`justforward doctor`: print the report; exit code 1 where something is broken."""
    given = parse(words)
    found = examine(online=given.online)
    print(json.dumps([dataclasses.asdict(f) for f in found], indent=2) if given.json else "\n".join(as_text(found)))
    if any(f.status == "broken" for f in found):
        raise SystemExit(1)


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments. Raises ValueError for others."""
    parser = Parser(prog="justforward doctor", description="Report on this environment.")
    parser.add_argument("--online", action="store_true", help="try to reach the hub, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(words)


def examine(*, online: bool = False) -> list[Finding]:
    """All findings, in the order of the report."""
    checks = [_packages, _processor, _memory, _gpus, _noise, _products, _disk, _extras, *([_hub] if online else [])]
    return [finding for check in checks for finding in _guarded(check)]


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # whatever an installation may be broken by
        name = check.__name__.removeprefix("_")
        package = error.name if isinstance(error, ModuleNotFoundError) else None
        mend = f"pip install {package or '--force-reinstall justforward'}"
        mend = mend if isinstance(error, ImportError) else "no fault that is known: report it"
        yield Finding(name, "check", _said(error), "broken", mend)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def as_text(found: list[Finding]) -> list[str]:
    """The report: sections of lines, then what to mend."""
    lines: list[str] = []
    width = max(len(f.name) for f in found)
    for i, f in enumerate(found):
        if i == 0 or f.section != found[i - 1].section:
            lines += [*([""] if lines else []), f.section]
        lines.append(f"  {f.name:{width}}  {f.value}{'' if f.status == 'ok' else f'  [{f.status}]'}")
    mends = [f for f in found if f.status != "ok"]
    lines += ["", "to mend" if mends else "nothing to mend"]
    return lines + [f"  {f.status}: {f.section}, {f.name}: {f.mend}" for f in mends]


def _packages() -> Iterator[Finding]:
    """Versions, and whether they are what this package asks for."""
    section = "packages"
    yield Finding(section, "python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    asked = {} if installed_version("packaging") is None else {r.name: r for r in requirements()}
    versions = {"python": platform.python_version()}
    for name in ("justforward", *PACKAGES):
        version = installed_version(name)
        versions |= {} if version is None else {name: version}
        wanted = asked.get(name)
        if version is None:
            yield from _absent(name)
        elif wanted is not None and not wanted.specifier.contains(version, prereleases=True):
            mend = f"pip install '{wanted.name}{wanted.specifier}'"
            yield Finding(section, name, f"{version}, and {wanted.specifier} is asked for", "broken", mend)
        else:
            yield Finding(section, name, version)
    yield Finding(section, "together", standing(versions))


def _absent(name: str) -> Iterator[Finding]:
    if name == "justforward":
        yield Finding("packages", name, "a source checkout, not installed")
    elif name != "triton":
        yield Finding("packages", name, "not installed", "broken", f"pip install {name}")
    elif machine.gpus():
        yield Finding("packages", name, "not installed", "broken", "pip install triton: noise on the GPU needs it")
    else:
        yield Finding("packages", name, "not installed (only GPUs need it)")


def _processor() -> Iterator[Finding]:
    """Cores, threads, and vector units."""
    import torch

    section = "processor"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    few = threads < cores
    yield Finding(
        *(section, "threads", f"{threads} on {cores} cores", "slow" if few else "ok"),
        "unset OMP_NUM_THREADS: torch and the noise use fewer threads than there are cores" if few else "",
    )
    vectors = torch.backends.cpu.get_cpu_capability()
    plain = vectors not in ("AVX2", "AVX512") and platform.machine() in ("x86_64", "AMD64")
    yield Finding(
        *(section, "vectors", vectors, "slow" if plain else "ok"),
        "this processor, or ATEN_CPU_CAPABILITY, gives torch no wide vectors" if plain else "",
    )
    units = [unit for unit in ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16") if unit in _flags()]
    yield Finding(section, "16-bit units", ", ".join(units) or "none known")


def _flags() -> set[str]:
    """What the system says that the processor can do; empty where it does not tell."""
    path = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*: (.*)$", path.read_text(), re.MULTILINE) if path.is_file() else None
    return set(found.group(1).split()) if found else set()


def _memory() -> Iterator[Finding]:
    size = machine.main_memory()
    little = size < LITTLE_MEMORY
    mend = "libraries alone take 0.7 GiB: take a small model (`justforward plan MODEL` tells)" if little else ""
    yield Finding("memory", "main memory", f"{size / GIB:.1f} GiB", "slow" if little else "ok", mend)


def _gpus() -> Iterator[Finding]:
    """What torch sees, and a GPU that it does not."""
    import torch

    section, found = "GPUs", machine.gpus()
    for i, gpu in enumerate(found):
        yield Finding(section, f"GPU {i}", f"{gpu.name}, {gpu.memory / GIB:.1f} GiB")
    driver = Path("/proc/driver/nvidia/version")
    if driver.is_file():
        yield Finding(section, "driver", " ".join(driver.read_text().split("\n")[0].split()))
    if found:
        yield Finding(section, "CUDA of torch", str(torch.version.cuda))
    elif driver.is_file() or shutil.which("nvidia-smi"):
        mend = f"install a torch built for its driver (this one: {torch.__version__}), or mend CUDA_VISIBLE_DEVICES"
        yield Finding(section, "GPU", "there is a driver, and torch sees no GPU", "slow", mend)
    else:
        yield Finding(section, "GPU", "none")


def _noise() -> Iterator[Finding]:
    """Compiled kernels: that their bits are those of the definition, how fast they are, on whose threads."""
    import torch

    from justforward.noise import backend

    for device in ("cpu", *(["cuda"] if machine.gpus() else [])):
        try:
            backend(device)
        except Exception as error:
            mend = "remove the cache of compiled kernels (NUMBA_CACHE_DIR, noise/__pycache__, ~/.triton), or report it"
            yield Finding("noise", device, _said(error), "broken", mend)
            continue
        yield Finding("noise", device, "compiled, and equal to its definition to the bit")
        for dtype in (torch.float32, torch.bfloat16):
            nanoseconds = 1e9 * machine.noise_rate(dtype, device=device)
            yield Finding("noise", f"{device}, {_short(dtype)}", f"{nanoseconds:.3g} ns per weight")
    yield _openmp()


def _openmp() -> Finding:
    from justforward.noise import openmp

    if openmp._parallel() is not None:
        return Finding("noise", "threads", "torch's own (OpenMP)")
    mend = "nothing on this system: torch's OpenMP has no entry point to share, and a step takes up to a third longer"
    return Finding("noise", "threads", "a pool beside torch's", "slow", mend)


def _products() -> Iterator[Finding]:
    """Speed of matrix products, and 16-bit types that are slower than float32."""
    import torch

    for device in ("cpu", *(["cuda"] if machine.gpus() else [])):
        rates = {d: machine.matmul_rate(d, device=device) for d in (torch.float32, torch.bfloat16, torch.float16)}
        for dtype, rate in rates.items():
            slow = rate < 0.8 * rates[torch.float32]
            mend = f"{_short(dtype)} saves memory here, not time: take float32 where it fits" if slow else ""
            value = f"{rate / 1e9:.3g} GFLOP/s"
            yield Finding("products", f"{device}, {_short(dtype)}", value, "slow" if slow else "ok", mend)


def _short(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def _disk() -> Iterator[Finding]:
    """Room for checkpoints and results."""
    folder = Path("result")
    free = shutil.disk_usage(folder if folder.is_dir() else ".").free
    little = free < LITTLE_DISK
    mend = "checkpoints take the size of the model each: --save_trajectory makes them marks in a log" if little else ""
    yield Finding("disk", "free in result/", f"{free / GIB:.1f} GiB", "missing" if little else "ok", mend)


def _extras() -> Iterator[Finding]:
    """Optional packages: what is missing for what."""
    for extra, purpose in FOR.items():
        names = [r.name for r in requirements(extra)]
        missing = [name for name in names if installed_version(name) is None]
        if missing:
            mend = f"pip install 'justforward[{extra}]', for {purpose}"
            yield Finding("extras", extra, f"without {', '.join(missing)}", "missing", mend)
        elif names:
            yield Finding("extras", extra, f"installed, for {purpose}")


def _hub() -> Iterator[Finding]:
    """Whether models and data sets can be downloaded."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    mend = "give folders with --model_name and --data_dir, or mend network, proxy or HF_ENDPOINT"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        yield Finding("hub", address, "HF_HUB_OFFLINE is set", "missing", mend)
        return
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=5):
            yield Finding("hub", address, "reached")
    except urllib.error.HTTPError as error:
        yield Finding("hub", address, f"reached (status {error.code})")
    except (OSError, ValueError) as error:
        yield Finding("hub", address, f"not reached: {' '.join(str(error).split())}", "missing", mend)


def requirements(extra: str | None = None) -> list[Requirement]:
    """What this package asks for: always, or for an extra. Nothing where it is not installed."""
    from packaging.requirements import Requirement

    try:
        listed = [Requirement(line) for line in importlib.metadata.requires("justforward") or ()]
    except importlib.metadata.PackageNotFoundError:
        return []
    if extra is None:
        return [r for r in listed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return [r for r in listed if r.marker is not None and r.marker.evaluate({"extra": extra})]
