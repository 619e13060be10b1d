"""`justforward layout MODEL`: one word for the scripts on stdout, and the reason on stderr.

"dataN" stands for N processes that share the data of a step, "spread" for one process.
"""

from __future__ import annotations

import sys

import torch

from justforward import machine
from justforward.command_line.parser import Parser
from justforward.planning.shape import read_shape
from justforward.planning.target import choose_layout, copy_bytes


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
    shape = read_shape(given.model, trust_remote_code=given.trust_remote_code)
    found = choose_layout(copy_bytes(shape, getattr(torch, given.dtype).itemsize), gpus, given.batch)
    print(f"justforward: {found.reason}", file=sys.stderr)
    print(found)
