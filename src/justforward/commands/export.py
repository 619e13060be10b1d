"""`justforward export`: a plain Hugging Face model of what a run has saved."""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import PeftModel

from justforward.command_line.parser import Parser
from justforward.models.adapters import adapter_folder, kind_of
from justforward.models.logged import find_log
from justforward.models.recipe import ModelRecipe
from justforward.models.tuning import merge_lora
from justforward.results.files import writing
from justforward.training.output_folder import make_room

DTYPES = ("float32", "bfloat16", "float16")


def export_command(words: list[str]) -> None:
    """`justforward export MODEL --output DIR`. Raises ValueError, in one line, for what makes no plain model."""
    given = parse(words)
    folder, output = adapter_folder(given.model), Path(given.output)
    if folder is not None and kind_of(folder) != "lora":
        raise ValueError(f"{given.model}: a prefix is no part of a model's weights: use the adapter as it is")
    if output.resolve() == Path(given.model).expanduser().resolve():
        raise ValueError(f"argument --output: {output} is what is read: give another folder")
    named = find_log(given.model)
    dtype = given.dtype or (named[0].header.get("recipe", {}).get("dtype") if named else None) or "float32"
    recipe = ModelRecipe(model_name=given.model, base_model=given.base_model, dtype=dtype)
    loaded = recipe.build(auto_device=False, trust_remote_code=given.trust_remote_code)
    model = merge_lora(loaded.model) if isinstance(loaded.model, PeftModel) else loaded.model
    with writing(output, lambda: "make room there and give the same command again"):
        make_room(output, adapter=False, base=given.model)
        model.save_pretrained(output)
        loaded.tokenizer.save_pretrained(output)
    print(f"saved to {given.output}")


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of `justforward export`. Raises ValueError for what they do not take."""
    parser = Parser(prog="justforward export", description="Make a plain Hugging Face model.")
    what = "a folder that holds an adapter, a run's log or a model, a hub id, or a .gguf file"
    parser.add_argument("model", help=what)
    parser.add_argument("--output", required=True, help="folder to save the model and its tokenizer to")
    parser.add_argument("--base_model", help="the base of an adapter; default: as the adapter says")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: a log's own, else float32)")
    parser.add_argument("--trust_remote_code", action="store_true", help="as for a run")
    return parser.parse_args(words)
