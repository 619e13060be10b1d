"""The fields of Hugging Face `TrainingArguments`, read from their source text.

Importing transformers takes seconds; a misspelt argument or `--help` should answer at once. The dataclass is
plain enough to be read with `ast`: name, annotation, default, help and choices are literals in its source.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import re
from pathlib import Path
from typing import Any

from justforward.compat import FORMER_FIELDS, FSDP_IS_A_SWITCH, NEW_NAMES

# Where the enums that annotate fields are defined; their values become the choices of these arguments.
_ENUM_FILES = ("training_args.py", "trainer_utils.py", "debug_utils.py")
# The one field whose choices are computed in the source.
_LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
_KNOWN_CHOICES = {"log_level": _LOG_LEVELS, "log_level_replica": _LOG_LEVELS}
# Where the first sentence of the source's help leaves out what our users need, or our default differs.
_OUR_HELP = {
    "output_dir": "Folder for checkpoints, the training log and the saved model.",
    "max_steps": "Training steps; overrides num_train_epochs where it is above 0.",
    "warmup_steps": "Steps of linear warm-up; below 1: a share of all steps (the former warmup_ratio).",
    "seed": "Seed of the run: the noise of MeZO, the order of the batches, and new parameters.",
    "resume_from_checkpoint": (
        "Folder of a checkpoint to continue from; True: the last one in output_dir, whatever job made it; False: none. "
        "Not given: the last one in output_dir, if this job made it."
    ),
    "learning_rate": "The initial learning rate; auto (with trainer zo): measured before training, see zo_eps.",
    "optim": "The optimizer of trainer regular; trainer zo brings its own.",
}
OUR_DEFAULTS = {"output_dir": "result/tmp"}
AUTO = ("zo_eps", "learning_rate")
"""Numbers in whose place the word "auto" may stand: a probe before training finds them."""
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)\. ")
_SECTION = re.compile(r"# --- (.+) ---\s*$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgumentSpec:
    """One argument of the command line: what a parser and a help page need to know of it.

    `annotation` is the source text of the type ("int | None"); `default` is None where the source computes it;
    `may_stand_alone` means that `--name` without a value is True (always so for switches).
    """

    name: str
    annotation: str
    default: Any
    help: str
    group: str
    choices: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    may_stand_alone: bool = False

    @property
    def types(self) -> set[str]:
        """The alternatives of the annotation, None aside: {"int"} for "int | None"."""
        return {part.strip() for part in self.annotation.split("|")} - {"None"}

    @property
    def optional(self) -> bool:
        """Whether None is a value of it."""
        return "None" in [part.strip() for part in self.annotation.split("|")]

    @property
    def may_be_auto(self) -> bool:
        """Whether the word "auto" is a value of it."""
        return self.name in AUTO

    @property
    def is_bool(self) -> bool:
        """Whether it is a plain switch."""
        return self.types == {"bool"}


@functools.cache
def trainer_specs() -> tuple[ArgumentSpec, ...]:
    """Every field of the installed `TrainingArguments`, in the order of its source.

    Raises ValueError where transformers is not installed or its source cannot be read as expected.
    """
    folder = _transformers_folder()
    source = (folder / "training_args.py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    body = _class_body(tree, "TrainingArguments")
    enums = {name: values for file in _ENUM_FILES for name, values in _enum_values(folder / file).items()}
    sections = _section_of_line(source)
    specs = []
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(node.value, ast.Call):
            name = NEW_NAMES.get(node.target.id, node.target.id)
            if name not in FORMER_FIELDS:
                specs.append(_spec(name, node.annotation, node.value, sections[node.lineno], enums))
    if not any(spec.name == "learning_rate" for spec in specs):
        raise ValueError(f"cannot read the training arguments from {folder}: reinstall transformers>=5,<6")
    return tuple(specs)


def _transformers_folder() -> Path:
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        raise ValueError("transformers is not installed in this Python: pip install 'transformers>=5,<6'")
    return Path(found.origin).parent


def _class_body(tree: ast.Module, name: str) -> list[ast.stmt]:
    return next((node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), [])


def _spec(
    name: str, annotation: ast.expr, call: ast.Call, section: str, enums: dict[str, tuple[str, ...]]
) -> ArgumentSpec:
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    metadata = _literal_items(keywords.get("metadata"))
    text, alone = ast.unparse(annotation), metadata.get("nargs") == "?"
    if name == "fsdp" and not FSDP_IS_A_SWITCH:
        text, alone = "str | None", True
    choices = _KNOWN_CHOICES.get(name) or metadata.get("choices")
    for enum, values in enums.items():
        if enum in text.replace("|", " ").split():
            choices = values
    return ArgumentSpec(
        name=name,
        annotation=text,
        default=OUR_DEFAULTS.get(name, _literal(keywords.get("default"))),
        help=_OUR_HELP.get(name) or _SENTENCE_END.split(metadata.get("help") or "", maxsplit=1)[0].rstrip(".") + ".",
        group=section,
        choices=tuple(choices) if choices else None,
        may_stand_alone=alone,
    )


def _literal(node: ast.expr | None) -> Any:
    """The value of a literal; None for what only running the source would tell."""
    try:
        return None if node is None else ast.literal_eval(node)
    except ValueError:
        return None


def _literal_items(node: ast.expr | None) -> dict[str, Any]:
    if not isinstance(node, ast.Dict):
        return {}
    return {
        key.value: _literal(value)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }


def _enum_values(path: Path) -> dict[str, tuple[str, ...]]:
    """{enum name: its string values} for the `ExplicitEnum` classes of a source file."""
    enums = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and any("ExplicitEnum" in ast.unparse(base) for base in node.bases):
            values = [_literal(item.value) for item in node.body if isinstance(item, ast.Assign)]
            enums[node.name] = tuple(value for value in values if isinstance(value, str))
    return enums


def _section_of_line(source: str) -> list[str]:
    """The section comment above each line; lines count from 1."""
    sections, current = [""], "Other"
    for line in source.splitlines():
        if found := _SECTION.search(line):
            current = found.group(1)
        sections.append(current)
    return sections
