"""The program around the job: commands, exit codes, what goes to which stream."""

import errno
import importlib.metadata
import importlib.util
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from urllib.parse import quote

import pytest
from support.golden import MODEL

import justforward
from justforward.command_line.arguments import Parsed
from justforward.commands import cli
from justforward.commands.cli import COMMANDS, main

ROOT = Path(__file__).parents[3]


class Experiment(types.ModuleType):
    """A stand-in for the job: records what it was asked, and raises what a test puts into `raises`."""

    def __init__(self):
        super().__init__("justforward.experiment")
        self.asked: list[Parsed] = []
        self.raises: BaseException | None = None

    def run(self, parsed):
        self.asked.append(parsed)
        if self.raises:
            raise self.raises


@pytest.fixture
def experiment(monkeypatch):
    module = Experiment()
    monkeypatch.setitem(sys.modules, "justforward.experiment", module)
    monkeypatch.setattr(justforward, "experiment", module, raising=False)
    return module


@pytest.mark.parametrize("words", [["--num_train", "4"], ["run", "--num_train", "4"]])
def test_runs_the_job(experiment, words, capsys):
    assert main(words) == 0
    assert [parsed.job.num_train for parsed in experiment.asked] == [4]
    assert capsys.readouterr() == ("", "")


def test_takes_the_process_arguments_where_none_are_given(experiment, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["justforward", "--num_eval", "3"])
    assert main() == 0
    assert experiment.asked[0].job.num_eval == 3


def test_notes_go_to_stderr(experiment, capsys):
    assert main(["--use_ipex", "--logging_dir", "logs"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[:2] for line in lines] == [["justforward", " note"]] * 2
    assert len(experiment.asked) == 1


def test_a_users_mistake_found_by_the_job(experiment, capsys):
    experiment.raises = ValueError("two\n  lines")
    assert main([]) == 2
    assert capsys.readouterr().err == "justforward: error: two lines (JUSTFORWARD_TRACEBACK=1 shows where)\n"


def test_a_message_shows_what_is_no_blank(experiment, capsys):
    experiment.raises = ValueError("a.tsv:\n  \t'\t' expected,\x1b[1m not\u2028 'é\ud83d'")
    assert main([]) == 2
    said = "justforward: error: a.tsv: '\\t' expected,\\x1b[1m not\\u2028 'é\\ud83d'"
    assert capsys.readouterr().err.startswith(said)


def test_traceback_on_request(experiment, monkeypatch):
    monkeypatch.setenv("JUSTFORWARD_TRACEBACK", "1")
    experiment.raises = ValueError("deep inside")
    with pytest.raises(ValueError, match="deep inside"):
        main([])


@pytest.mark.parametrize("value", ["0", "", "false", "False", "no", "off"])
def test_no_traceback_on_request(value, experiment, monkeypatch):
    monkeypatch.setenv("JUSTFORWARD_TRACEBACK", value)
    experiment.raises = ValueError("deep inside")
    assert main([]) == 2


def test_interrupt(experiment, capsys):
    experiment.raises = KeyboardInterrupt()
    assert main([]) == 130
    assert capsys.readouterr().err == "justforward: interrupted\n"


def test_a_bug_keeps_its_traceback(experiment):
    experiment.raises = RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        main([])


def test_another_command_is_picked_by_the_first_word(monkeypatch):
    seen = []
    monkeypatch.setitem(COMMANDS._loaders, "replay", lambda: seen.append)
    assert main(["replay", "--log", "x"]) == 0
    assert seen == [["--log", "x"]]


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--num_trian", "--help"], ["run", "--help"]])
def test_help(words, capsys):
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: justforward ")
    assert "--zo_eps" in out
    assert err == ""


def test_version(capsys, monkeypatch):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("justforward 1.")
    monkeypatch.setattr(importlib.metadata, "version", _not_installed)
    assert main(["--version"]) == 0
    assert "not installed" in capsys.readouterr().out


def _not_installed(name):
    raise importlib.metadata.PackageNotFoundError(name)


@pytest.mark.parametrize("command", [["run.py"], ["-m", "justforward"]])
def test_entry_points(command):
    ran = subprocess.run([sys.executable, *command, "--num_trian", "4"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr == "justforward: error: unknown argument '--num_trian' (did you mean '--num_train'?)\n"


def test_run_py_needs_no_installation(tmp_path):
    """-S hides site-packages: the package is found through run.py's own folder, from anywhere."""
    script = str(ROOT / "run.py")
    ran = subprocess.run([sys.executable, "-S", script, "--version"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0
    assert ran.stdout.startswith("justforward ")


def test_the_help_page_names_every_command(capsys):
    for words in (["--help"], ["help"]):
        assert main(words) == 0
        page = capsys.readouterr().out
        assert all(f"\n  {name:8} {cli.DESCRIPTIONS[name]}\n" in page for name in cli.COMMANDS.names())


def test_what_the_system_refuses_is_one_line(monkeypatch, capsys):
    def full(words):
        raise OSError(errno.ENOSPC, "No space left on device", "/full/file")

    monkeypatch.setattr(cli, "run", full)
    assert main(["run"]) == 2
    assert capsys.readouterr().err.startswith("justforward: error: /full/file: No space left on device")


TASK = """
name = "Film"
train = "t.jsonl"
validation = "t.jsonl"
prompt = "{text} – 模型"
label = "label"
[options]
gut = " gut"
"schlécht" = " schlécht"
"""


@pytest.fixture
def foreign_words(tmp_path, monkeypatch):
    """A task and a result file with characters that few encodings have, and a path that is no text at all."""
    monkeypatch.chdir(tmp_path)
    Path("t.toml").write_text(TASK, encoding="utf-8")
    Path("t.jsonl").write_text('{"text": "ein schöner Film", "label": "gut"}\n', encoding="utf-8")
    folder = Path(os.fsdecode(b"r\xff"))
    folder.mkdir()
    about = {"model": "x/模型\udcff", "task": "Film", "method": "ICL", "command": "justforward --model_name x"}
    result = {"accuracy": 0.5, "num_eval": 2, "seconds": 1.0, "run": about}
    (folder / "模.json").write_text(json.dumps(result))
    return str(folder)


def printed(words, encoding, monkeypatch):
    """The exit code, stdout and stderr of a command line on a terminal of this encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        code = main(words)
    for stream in streams:
        stream.flush()
    return code, *(stream.buffer.getvalue().decode(encoding) for stream in streams)


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"\u2013 \u6a21\u578b"), ("cp1252", r"– \u6a21\u578b"), ("utf-8", "– 模型")]
)
def test_what_a_terminal_cannot_show_is_escaped(encoding, shown, foreign_words, monkeypatch):
    code, out, err = printed(["task", "check", "t.toml", "--num", "1"], encoding, monkeypatch)
    assert (code, err) == (0, "")
    assert shown in out
    code, out, err = printed(["task", "check", "模.toml"], encoding, monkeypatch)
    assert (code, out) == (2, "")
    assert err.startswith(f"justforward: error: {shown[-12:-6] if encoding != 'utf-8' else '模'}.toml: ")
    code, out, err = printed(["report", foreign_words, "--output", "模.html"], encoding, monkeypatch)
    assert (code, err) == (0, "")
    assert "1 run -> " in out
    page = Path("模.html").read_text(encoding="utf-8")
    assert r"x/模型\udcff" in page
    assert f'<a href="{quote("模.md")}">模.md</a>' in page
    assert r"r\udcff/模.json" in page


@pytest.mark.parametrize("words", [["task", "check", "t.toml", "--num", "1"], ["report", "r", "--output", "模.html"]])
def test_an_ascii_system_is_no_obstacle(words, foreign_words):
    os.rename(foreign_words, "r")  # noqa: PTH104
    settings = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "justforward", *words]
    ran = subprocess.run(command, env=settings, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert r"\udce6" in ran.stdout or r"\u6a21" in ran.stdout
    if "report" in words:
        assert quote("模.md") in Path("模.html").read_text(encoding="utf-8")


def test_a_model_or_a_table_that_an_ascii_system_cannot_name(foreign_words):
    settings = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shutil.copytree(MODEL, "模")
    Path("é.toml").write_text(TASK.replace("t.jsonl", "é.jsonl"), encoding="utf-8")
    for words, said in (
        (["--task_file", "é.toml"], r"'\xe9.jsonl' cannot be written in ascii: the system's encoding is ascii, set "),
        (
            ["task", "check", "t.toml", "--model_name", "模"],
            "the path is no text in ascii, the system's encoding, and libraries cannot open it: set ",
        ),
    ):
        command = [sys.executable, "-m", "justforward", *words]
        ran = subprocess.run(command, env=settings, capture_output=True, text=True)
        assert ran.returncode == 2
        assert ran.stderr.startswith("justforward: error: ")
        assert said + "PYTHONUTF8=1" in ran.stderr


def test_a_name_that_the_system_has_no_bytes_for(monkeypatch, capsys):
    def fail(words):
        "é".encode("ascii")

    monkeypatch.setattr(cli, "run", fail)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert main(["run"]) == 2
    line = r"justforward: error: '\xe9' cannot be written in ascii: the system's encoding is ascii, set PYTHONUTF8=1 "
    assert capsys.readouterr().err.startswith(line)


def test_a_reader_that_leaves_early_is_no_mistake():
    words = [sys.executable, "-m", "justforward", "task", "list"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdout.close()
        assert job.stderr.read() == b""
    assert job.returncode == 141


def stderr_of(code):
    """What a new interpreter writes to a stderr that is no terminal."""
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_a_start_says_nothing_of_what_torchao_does_without():
    assert stderr_of("import sys, justforward.models.loading; assert 'torchao' in sys.modules") == ""


def test_other_warnings_of_the_libraries_are_heard(caplog):
    for name, level in (("torchao", "error"), ("torchao.quantization", "warning"), ("torch", "warning")):
        getattr(logging.getLogger(name), level)("heard")
    logging.getLogger("torchao").warning("not heard")
    assert caplog.messages == ["heard"] * 3


def test_no_bars_of_libraries_without_a_terminal(monkeypatch):
    bar = "import tqdm; list(tqdm.tqdm(range(3)))"
    quiet = "from justforward.commands.cli import quiet_without_terminal; quiet_without_terminal()"
    assert "3/3" in stderr_of(bar)
    assert stderr_of(f"{quiet}; {bar}") == ""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda: True))
    cli.quiet_without_terminal()
    assert "TQDM_DISABLE" not in os.environ
