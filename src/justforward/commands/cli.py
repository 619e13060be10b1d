"""The command `justforward` (and `python run.py`).

Parsing needs neither torch nor transformers, so `--help` and every mistake answer at once; the work is imported
when it starts. Exit codes: 0 done, 2 a mistake of the user's (one line on stderr says which), 130 interrupted.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from justforward.registry import Registry

COMMANDS: Registry[Callable[[list[str]], None]] = Registry("command")
DESCRIPTIONS = {
    "run": "evaluate a model, or train it and evaluate it; this word may be left out",
    "sweep": "search the learning rate and the size of MeZO's probe",
    "report": "show many runs on one page",
    "plan": "tell what memory and time a model needs, from its configuration alone",
    "task": "list the tasks, or check one of your own",
    "log": "describe a run's log",
    "replay": "rebuild the model of any step from a run's log",
    "export": "make a plain Hugging Face model of a saved adapter, a GGUF file or a model",
    "layout": "tell whether GPUs each get a copy of a model or share one",
    "doctor": "examine the environment",
}
"""What each command does, by name."""

# A first word without dashes picks one; none of them means "run".
COMMANDS.lazy("run", "justforward.commands.cli:run")
COMMANDS.lazy("log", "justforward.commands.replay:log_command")
for _name in DESCRIPTIONS.keys() - {"run", "log"}:
    COMMANDS.lazy(_name, f"justforward.commands.{_name}:{_name}_command")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code. Exceptions other than users' mistakes are bugs and propagate."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show, and bytes of paths that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    quiet_without_terminal()
    try:
        command = words.pop(0) if words and not words[0].startswith("-") else "run"
        command, words = ("run", ["--help"]) if command == "help" else (command, words)
        COMMANDS.get(command)(words)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        return 141
    except KeyboardInterrupt:
        print("justforward: interrupted", file=sys.stderr)
        return 130
    except UnicodeEncodeError as error:
        if _wants_traceback():
            raise
        print(f"justforward: error: {_not_encoded(error)}", file=sys.stderr)
        return 2
    except ValueError as error:
        if _wants_traceback():
            raise
        print(f"justforward: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        if _wants_traceback():
            raise
        where = "" if error.filename is None else f"{error.filename}: "
        what = f"{where}{error.strerror or error} (JUSTFORWARD_TRACEBACK=1 shows where)"
        print(f"justforward: error: {what}", file=sys.stderr)
        return 2
    return 0


def quiet_without_terminal() -> None:
    """Keep the bars of libraries out of pipes and files. tqdm reads its variable once, when it is imported."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")


def run(words: list[str]) -> None:
    """The job itself: parse, then train and evaluate as asked."""
    if "--version" in words:
        print(f"justforward {_version()}")
        return
    from justforward.command_line import arguments

    if "--help" in words or "-h" in words:
        print(arguments.help_page(DESCRIPTIONS), end="")
        return
    parsed = arguments.parse(words)
    for note in parsed.notes:
        print(f"justforward: note: {note}", file=sys.stderr)
    from justforward import experiment

    experiment.run(parsed)


def _wants_traceback() -> bool:
    return os.environ.get("JUSTFORWARD_TRACEBACK", "").strip().lower() not in ("", "0", "false", "no", "off")


def _one_line(error: ValueError) -> str:
    """The message on one line, in which a tab is seen. One from inside a library may be a bug of ours: say where."""
    text = re.sub(r"\s*\n\s*|[ \r]+", " ", str(error).strip()) or type(error).__name__
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    ours = Path(raised_in).is_relative_to(Path(__file__).parents[1])
    return line if ours else f"{line} (JUSTFORWARD_TRACEBACK=1 shows where)"


def _not_encoded(error: UnicodeEncodeError) -> str:
    """A path or a text that the system has no bytes for, in words."""
    what = f"{error.object!a:.200} cannot be written in {error.encoding}"
    system = sys.getfilesystemencoding()
    mend = "" if system == "utf-8" else f": the system's encoding is {system}, set PYTHONUTF8=1"
    return f"{what}{mend} (JUSTFORWARD_TRACEBACK=1 shows where)"


def _version() -> str:
    import importlib.metadata  # as in `registry`: not for --help

    try:
        return importlib.metadata.version("justforward")
    except importlib.metadata.PackageNotFoundError:
        return "(source checkout, not installed)"
