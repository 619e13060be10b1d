"""Words of a command line -> values, by argument specifications; and the help page.

A thin layer over argparse: types follow the annotations, errors are one line with a suggestion, and old spellings
(`old_spellings`) are understood.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from justforward.command_line.old_spellings import IGNORED, REMOVED, RENAMED, TRANSLATED, merge_fsdp_config
from justforward.command_line.trainer_fields import ArgumentSpec
from justforward.registry import did_you_mean

_TRUE, _FALSE = {"true", "yes", "y", "t", "1", "on"}, {"false", "no", "n", "f", "0", "off"}
Specs = Sequence[ArgumentSpec]


def read_words(argv: Sequence[str], own: Specs, trainers: Specs) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Parse into (own values given, the Trainer's values given, notes on old spellings).

    Raises ValueError for unknown names, with the nearest known one, and for values that do not fit.
    """
    parser = build_parser(own, trainers)
    words = _known_words(argv, parser, [*own, *trainers])
    namespace, leftover = parser.parse_known_args(words)
    if leftover:
        raise ValueError(f"unexpected word '{leftover[0]}': arguments are written --name value")
    given = vars(namespace)
    notes, fsdp = given.pop("_notes", []), given.pop("_fsdp", None)
    if fsdp:
        given["fsdp_config"] = merge_fsdp_config(given.get("fsdp_config"), fsdp)
    values = {spec.name: _settle(spec, given[spec.name]) for spec in [*own, *trainers] if spec.name in given}
    own_names = {spec.name for spec in own}
    return (
        {name: value for name, value in values.items() if name in own_names},
        {name: value for name, value in values.items() if name not in own_names},
        notes,
    )


def to_words(spec: ArgumentSpec, value: Any) -> list[str]:
    """The words that give an argument this value; the inverse of `read_words` for one argument."""
    if isinstance(value, list):
        return [f"--{spec.name}", *map(str, value)]
    if value is None:
        text = "none"
    elif isinstance(value, dict):
        text = json.dumps(value)
    elif isinstance(value, float):
        text = repr(value).removesuffix(".0")
    else:
        text = str(value)
    return [f"--{spec.name}={text}"] if text.startswith("-") else [f"--{spec.name}", text]


def build_parser(own: Specs, trainers: Specs, commands: Mapping[str, str] | None = None) -> argparse.ArgumentParser:
    """One parser of all arguments, grouped; only what was given reaches its namespace.

    commands: what each command does, by name, for the help page.
    """
    listed = "".join(f"\n  {name:8} {text}" for name, text in (commands or {}).items())
    parser = Parser(
        prog="justforward",
        usage="justforward [COMMAND] [--argument value ...]",
        description="Fine-tune and evaluate language models with forward passes only (MeZO)."
        + (f"\n\ncommands, each with a --help of its own:{listed}\n\nThe arguments of run:" if listed else ""),
        epilog=_EXAMPLES,
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    groups: dict[str, Any] = {}
    titled = [(spec, spec.group) for spec in own] + [(spec, f"Trainer: {spec.group}") for spec in trainers]
    for spec, title in titled:
        if spec.name not in RENAMED:
            group = groups.setdefault(title, None) or parser.add_argument_group(title)
            groups[title] = group
            _add(group, spec)
    group = parser.add_argument_group("This program")
    group.add_argument("--help", "-h", action="store_true", help="Show this page.")
    group.add_argument("--version", action="store_true", help="Show the version.")
    fields = {spec.name for spec in trainers}
    for name in [old for old in (*TRANSLATED, *IGNORED, *REMOVED) if old not in fields]:
        parser.add_argument(f"--{name}", dest=f"_{name}", nargs="*", action=_OldSpelling, help=argparse.SUPPRESS)
    return parser


def _add(group: Any, spec: ArgumentSpec) -> None:
    old = [name for name, new in RENAMED.items() if new == spec.name]
    flags = [f"--{name}" for name in (spec.name, *spec.aliases, *old)]
    alone = spec.is_bool or spec.may_stand_alone
    arity: dict[str, Any] = {"nargs": "?", "const": True} if alone else {"nargs": "+"} if _takes_list(spec) else {}
    group.add_argument(*flags, dest=spec.name, type=_converter(spec), metavar=_metavar(spec), help=_help(spec), **arity)


def _takes_list(spec: ArgumentSpec) -> bool:
    return any(part.startswith("list[") for part in spec.types)


def _settle(spec: ArgumentSpec, value: Any) -> Any:
    """One word stays a string where the type allows one; lists of other than strings are the library's to split."""
    if not isinstance(value, list) or "str" not in spec.types:
        return value
    if "list[str]" not in spec.types:
        return " ".join(value)
    return value[0] if len(value) == 1 else value


def _converter(spec: ArgumentSpec) -> Callable[[str], Any]:
    """The function from a word to a value of the argument's type; it raises ArgumentTypeError."""
    scalars = {"bool": _to_bool, "int": _to_int, "float": _to_float}
    scalar = next((scalars[name] for name in scalars if spec.types == {name}), None)
    mapping = any(part.startswith("dict") for part in spec.types) or spec.types == {"ParallelismConfig"}
    mixed = "str" in spec.types and (spec.types & {"bool", "Literal[False]"} or spec.may_stand_alone)

    def convert(word: str) -> Any:
        if spec.choices and word not in spec.choices:
            raise argparse.ArgumentTypeError(
                f"unknown value '{word}'{did_you_mean(word, list(spec.choices))}; one of {', '.join(spec.choices)}"
            )
        if spec.optional and not spec.choices and word.lower() == "none" and (scalar or spec.types == {"str"}):
            return None
        if scalar and spec.may_be_auto:
            return "auto" if word == "auto" else _to_float(word, other=" or auto")
        if scalar:
            return scalar(word)
        if mapping:
            parsed = _to_mapping(word, file_allowed="str" in spec.types)
            return word if "str" in spec.types else parsed
        if mixed and word.lower() in ("true", "false"):
            return word.lower() == "true"
        return word

    return convert


def _to_bool(word: str) -> bool:
    if word.lower() in _TRUE | _FALSE:
        return word.lower() in _TRUE
    raise argparse.ArgumentTypeError(f"expected True or False, got '{word}'")


def _to_int(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected an integer, got '{word}'") from None


def _to_float(word: str, *, other: str = "") -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number{other}, got '{word}'")
    return value


def _to_mapping(word: str, *, file_allowed: bool) -> Any:
    if file_allowed and not word.lstrip().startswith("{"):
        return word
    try:
        parsed = json.loads(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error}): {word}") from None
    if not isinstance(parsed, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object such as {{"key": 1}}, got {word}')
    return parsed


def _known_words(argv: Sequence[str], parser: argparse.ArgumentParser, specs: Specs) -> list[str]:
    """`argv` with hyphens in names made underscores and `--no_name` made `--name=False`.

    Raises ValueError at the first name that nobody knows.
    """
    known = {flag for action in parser._actions for flag in action.option_strings}
    on_by_default = {spec.name for spec in specs if spec.is_bool and spec.default is True}
    words = []
    for word in argv:
        flag, equals, value = word.partition("=")
        name = "--" + flag[2:].replace("-", "_")
        if re.match(r"-[\d.]", word) and words and re.fullmatch(r"--\w+", words[-1]):
            # argparse takes -1e-3 for a flag, unless it is written behind an equals sign.
            words[-1] += f"={word}"
        elif not re.match(r"--|-[A-Za-z]", word):
            words.append(word)
        elif flag in known or name in known:
            words.append((flag if flag in known else name) + equals + value)
        elif name.startswith("--no_") and name[5:] in on_by_default and not equals:
            words.append(f"--{name[5:]}=False")
        else:
            visible = [flag for flag in sorted(known) if flag not in {f"--{old}" for old in (*IGNORED, *REMOVED)}]
            raise ValueError(f"unknown argument '{flag}'{did_you_mean('--' + flag.lstrip('-'), visible)}")
    return words


class Parser(argparse.ArgumentParser):
    """Mistakes are ValueErrors, which the command line turns into one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise ValueError(message)


class _OldSpelling(argparse.Action):
    """Sets what an old argument means today, or leaves a note, or refuses."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name = self.dest.removeprefix("_")
        if name in REMOVED:
            raise argparse.ArgumentError(self, f"no longer exists; {REMOVED[name]}")
        if name in IGNORED:
            namespace._notes = [*getattr(namespace, "_notes", []), f"--{name} is ignored: {IGNORED[name]}"]
            return
        kind, translate = TRANSLATED[name]
        spec = ArgumentSpec(name=name, annotation=kind, default=None, help="", group="")
        if len(values) > 1 or not (values or spec.is_bool):
            raise argparse.ArgumentError(self, "expected one value")
        try:
            new = translate(_converter(spec)(values[0]) if values else True)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise argparse.ArgumentError(self, str(error)) from None
        namespace._fsdp = {**getattr(namespace, "_fsdp", {}), **new.pop("fsdp_config", {})}
        for key, value in new.items():
            setattr(namespace, key, value)


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str, **kwargs: Any):
        super().__init__(prog, max_help_position=28, width=min(shutil.get_terminal_size().columns, 120) - 2)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # The examples keep their lines; they are short.
        return "\n".join(indent + line for line in text.splitlines())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        return " ".join([", ".join(action.option_strings), action.metavar or ""]).rstrip()  # type: ignore[list-item]


def _metavar(spec: ArgumentSpec) -> str:
    if spec.is_bool:
        return "" if spec.default is False else "True|False"
    names = {"int": "INT", "float": "FLOAT"}
    word = next((names[name] for name in names if name in spec.types), "TEXT")
    if spec.choices and len(spec.choices) <= 4:
        word = "|".join(spec.choices)
    elif any(part.startswith("dict") for part in spec.types):
        word = "JSON"
    word += "|auto" if spec.may_be_auto else ""
    return word + ("|none" if spec.optional and word in names.values() else "")


def _help(spec: ArgumentSpec) -> str:
    if spec.default is None:
        default = "none" if spec.optional else "chosen by transformers"
    else:
        default = json.dumps(spec.default) if spec.default == "\n" else spec.default
    choices = f" One of: {', '.join(spec.choices)}." if spec.choices and 4 < len(spec.choices) < 20 else ""
    return spec.help + choices + (f" Default: {default}." if default != "" else "")


_EXAMPLES = """\
Booleans are given as --name, --name True or --name False. Where an argument is given twice, the later one wins.
The Trainer's arguments are those of the installed transformers; https://huggingface.co/docs/transformers has more
on each.

examples:
  zero-shot, and with 32 demonstrations per sample:
    justforward --model_name facebook/opt-1.3b --task_name SST2 --num_eval 1000
    justforward --model_name facebook/opt-1.3b --task_name SST2 --num_eval 1000 --num_train 32
  MeZO on all parameters, weights in float16:
    justforward --model_name facebook/opt-1.3b --task_name SST2 --trainer zo --load_float16 \\
      --train_set_seed 0 --num_train 1000 --num_dev 500 --num_eval 1000 --train_as_classification \\
      --learning_rate 1e-7 --zo_eps 1e-3 --lr_scheduler_type constant --max_steps 20000 \\
      --output_dir result/sst2
  without network, on rows of your own:
    justforward --model_name path/to/model --task_name SST2 --data_dir path/to/data
"""
