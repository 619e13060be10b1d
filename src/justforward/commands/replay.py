"""`justforward replay`: any step's model, rebuilt from a run's log; `justforward log` describes and verifies one."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import PeftModel

from justforward.command_line.parser import Parser
from justforward.commands.guided_replay import replay_guided
from justforward.models.logged import is_guided, log_file
from justforward.models.saving import save
from justforward.optim.log import read
from justforward.results.files import writing
from justforward.training.output_folder import make_room
from justforward.trajectory.replay import describe, replay


def log_command(words: list[str]) -> None:
    """`justforward log LOG`: describe and verify."""
    print("\n".join(describe(parse("log", words).log)))


def replay_command(words: list[str]) -> None:
    """`justforward replay LOG --model BASE --to STEP --output DIR`."""
    given = parse("replay", words)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"argument --device: {given.device} is not here: torch sees no GPU")
    log = read(log_file(given.log))
    if is_guided(log):
        loaded = replay_guided(log, given)
    else:
        loaded = replay(given.log, model_name=given.model, to=given.to, device=given.device, quiet=None)
    output = Path(given.output)
    with writing(output, lambda: "make room there and give the same command again"):
        make_room(output, adapter=isinstance(loaded.model, PeftModel), base=given.model or "")
        save(loaded, output)
    print(f"saved to {given.output}")


def parse(command: str, words: list[str]) -> argparse.Namespace:
    """The arguments of "log" or "replay". Raises ValueError for what they do not take."""
    what = {"log": "Describe and verify a trajectory log.", "replay": "Rebuild the model of any step of a logged run."}
    parser = Parser(prog=f"justforward {command}", description=what[command])
    parser.add_argument("log", help="a trajectory log, or the output folder that holds it")
    if command == "replay":
        parser.add_argument("--model", "--model_name", help="the base model; default: as the log names it")
        parser.add_argument("--to", type=int, help="number of steps to apply; default: all")
        parser.add_argument("--output", required=True, help="folder to save the model and its tokenizer to")
        parser.add_argument("--device", default="cpu", help="where to rebuild it (default: cpu)")
        parser.add_argument("--data_dir", help="of a guided run, whose rows are needed; default: as it was given")
    return parser.parse_args(words)
