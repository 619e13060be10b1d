"""`justforward doctor`: findings, mends and exit codes, in environments that are made for it."""

import json
import sys
import tomllib
import urllib.error
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from justforward import machine
from justforward.commands import doctor
from justforward.commands.cli import main
from justforward.commands.doctor import Finding
from justforward.machine import GIB, Gpu

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(machine, "matmul_rate", lambda dtype, **_: 1e12)
    monkeypatch.setattr(machine, "noise_rate", lambda dtype, **_: 1e-9)


def found(section, name=None):
    return [f for f in doctor.examine() if f.section == section and name in (None, f.name)]


def test_a_whole_environment(capsys):
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in ("python", "torch", "transformers", "accelerate", "peft", "datasets", "numba", "triton"):
        assert f"\n  {name} " in text
    assert "equal to its definition to the bit" in text
    assert "1 ns per weight" in text
    assert "GiB" in text
    assert "broken" not in text


def test_json_has_a_finding_per_line(capsys):
    assert main(["doctor", "--json"]) == 0
    listed = [Finding(**line) for line in json.loads(capsys.readouterr().out)]
    assert {f.status for f in listed} <= {"ok", "slow", "missing"}
    assert all(f.mend for f in listed if f.status != "ok")
    assert not [f for f in listed if f.section == "hub"]


def test_wrong_words_are_one_line(capsys):
    assert main(["doctor", "--onlin3"]) == 2
    assert "unrecognized arguments: --onlin3" in capsys.readouterr().err


def test_what_is_broken_ends_with_code_1(monkeypatch, capsys):
    monkeypatch.setattr("justforward.noise.cpu.load", _raise(RuntimeError("bits")))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    text = capsys.readouterr().out
    assert "RuntimeError: bits  [broken]" in text
    assert "broken: noise, cpu: remove the cache of compiled kernels" in text
    assert "free in result/" in text  # the other checks ran


def _raise(error):
    def raiser(*args):
        raise error

    return raiser


def test_a_torch_that_does_not_import_is_reported(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit):
        main(["doctor"])
    text = capsys.readouterr().out
    assert "ModuleNotFoundError: import of torch halted" in text
    assert "broken: products, check: pip install torch" in text
    assert "transformers" in text


def test_versions_are_held_to_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda extra=None: [Requirement("torch>=99")])
    (torch,) = found("packages", "torch")
    assert (torch.status, torch.mend) == ("broken", "pip install 'torch>=99'")
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    missing = {f.name: f.status for f in found("packages")}
    assert missing["peft"] == "broken"
    assert missing["justforward"] == "ok"


def test_triton_is_needed_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    monkeypatch.setattr(machine, "gpus", list)
    assert [f.status for f in doctor._absent("triton")] == ["ok"]
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("H100", 80 * GIB)])
    assert [f.status for f in doctor._absent("triton")] == ["broken"]
    assert next(f.value for f in doctor._gpus()) == "H100, 80.0 GiB"


def test_few_threads_little_memory_and_little_disk(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(machine, "main_memory", lambda: 2 * GIB)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": GIB}))
    mends = {f.name: f.mend for f in doctor.examine() if f.status != "ok"}
    assert "unset OMP_NUM_THREADS" in mends["threads"]
    assert "take a small model" in mends["main memory"]
    assert "--save_trajectory" in mends["free in result/"]


def test_a_slow_16_bit_type_and_threads_of_ones_own(monkeypatch):
    monkeypatch.setattr(machine, "matmul_rate", lambda dtype, **_: 1e9 if str(dtype)[6:] == "float16" else 1e12)
    monkeypatch.setattr("justforward.noise.openmp._parallel", lambda: None)
    slow = {f.name for f in doctor.examine() if f.status == "slow" and f.section in ("products", "noise")}
    assert slow == {"cpu, float16", "threads"}


def test_missing_extras_say_what_for(monkeypatch):
    monkeypatch.setattr(doctor, "installed_version", lambda name: None if name == "torchao" else "9")
    quant = next(f for f in doctor._extras() if f.name == "quant")
    assert (quant.status, quant.value) == ("missing", "without torchao")
    assert quant.mend == "pip install 'justforward[quant]', for 8- and 4-bit weights (--load_int8, --load_4bit)"


def test_every_extra_has_a_purpose():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["optional-dependencies"]) <= set(doctor.FOR)


@pytest.mark.parametrize(
    ("raised", "offline", "status", "fragment"),
    [
        (None, "0", "ok", "reached"),
        (urllib.error.URLError("no route"), "0", "missing", "not reached"),
        (urllib.error.HTTPError("https://hub", 403, "no", {}, None), "0", "ok", "reached (status 403)"),  # type: ignore[arg-type]
        (None, "1", "missing", "HF_HUB_OFFLINE is set"),
    ],
)
def test_the_hub_is_asked_only_online(raised, offline, status, fragment, monkeypatch):
    class Answer:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        if raised is not None:
            raise raised
        return Answer()

    monkeypatch.setenv("HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    doctor.examine()
    assert asked == []
    (hub,) = [f for f in doctor.examine(online=True) if f.section == "hub"]
    assert hub.status == status
    assert fragment in hub.value
    assert asked == ([] if offline == "1" else ["https://hub.example"])


def test_a_check_that_fails_is_a_finding(monkeypatch):
    monkeypatch.setattr(machine, "main_memory", _raise(OSError("no such file")))
    (memory,) = [f for f in doctor.examine() if f.section == "memory"]
    assert (memory.status, memory.value) == ("broken", "OSError: no such file")
