"""How a job is laid out over a machine's GPUs: a copy of the model on each, or one spread over all.

`justforward layout MODEL` prints one word for the scripts: "dataN" for N processes that share the data of a step, or
"spread" for one process; and the reason on stderr.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from justforward import machine
from justforward.argument_parser import Parser
from justforward.machine import GIB
from justforward.models.shape import parameter_count

ACTIVATIONS = 1.25
"""Memory of a model's evaluation over that of its weights, for batches of the default token budget."""

CONTEXT = 2 * GIB
"""What a GPU's own context, kernels and allocator take."""


@dataclass(frozen=True)
class Layout:
    """`processes` copies, each on a GPU of its own; 1 spreads one copy over all of them."""

    processes: int
    reason: str

    def __str__(self) -> str:
        return f"data{self.processes}" if self.processes > 1 else "spread"


def weight_bytes(model_name: str, dtype: str = "float16", *, trust_remote_code: bool = False) -> int:
    """Bytes of a model's weights, from its config alone. Raises ValueError where there is none."""
    return parameter_count(model_name, trust_remote_code=trust_remote_code) * getattr(torch, dtype).itemsize


def choose_layout(weights: int, gpus: list[int], batch: int | None = None) -> Layout:
    """The layout for weights of so many bytes on GPUs of so many bytes each.

    batch: examples per step, which processes must be able to share evenly; None: any number of them can work.
    """
    if len(gpus) < 2:
        return Layout(1, f"{len(gpus)} GPU")
    need = int(weights * ACTIVATIONS) + CONTEXT
    if need > min(gpus):
        return Layout(1, f"a copy needs about {need / GIB:.0f} GiB, the smallest GPU has {min(gpus) / GIB:.0f}")
    processes = max(n for n in range(1, len(gpus) + 1) if batch is None or batch % n == 0)
    return Layout(processes, f"a copy of about {need / GIB:.0f} GiB fits each of {len(gpus)} GPUs")


def layout_command(words: list[str]) -> None:
    """`justforward layout MODEL --batch 16 --dtype float16 --gpus 4x80`."""
    parser = Parser(prog="justforward layout", description="Copies of the model on each GPU, or one over all?")
    parser.add_argument("model", help="model name or folder")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"), help="of the weights")
    parser.add_argument("--batch", type=int, help="examples per step, which processes share; default: any number")
    parser.add_argument("--gpus", help="GPUs as COUNTxGIB, such as 4x80; default: those that are visible")
    parser.add_argument("--trust_remote_code", action="store_true", help="let a repository run its own Python code")
    given = parser.parse_args(words)
    if given.batch is not None and given.batch < 1:
        raise ValueError(f"argument --batch: must be at least 1, got {given.batch}")
    gpus = machine.read_gpus(given.gpus) if given.gpus else [gpu.memory for gpu in machine.gpus()]
    found = choose_layout(
        weight_bytes(given.model, given.dtype, trust_remote_code=given.trust_remote_code), gpus, given.batch
    )
    print(f"justforward: {found.reason}", file=sys.stderr)
    print(found)
