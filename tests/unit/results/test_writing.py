"""Files that cannot be written, in one line."""

import errno

import pytest

from justforward.results.files import write_json, writing

FULL = OSError(errno.ENOSPC, "No space left on device", "/full/file")
RUST = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")


def raised_in(error, folder):
    with writing(folder, lambda: "make room"):
        raise error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, "cannot write to /full/file: No space left on device: make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "cannot write to out: Disk quota exceeded: make room"),
        (RUST, "cannot write to out: No space left on device: make room"),
        (TORCH, "cannot write to out: No space left on device: make room"),
        (RuntimeError("basic_ios::clear: iostream error"), "cannot write to out: No space left on device: make room"),
        (Exception("Permission denied (os error 13)"), "cannot write to out: Permission denied: see that files can be"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(error, said):
    with pytest.raises(ValueError, match=r"^cannot write to ") as caught:
        raised_in(error, "out")
    assert str(caught.value).startswith(said)
    assert caught.value.__cause__ is error


def test_what_another_error_came_from_counts():
    later = RuntimeError("closing failed")
    later.__context__ = FULL
    with pytest.raises(ValueError, match="No space left"):
        raised_in(later, "out")


@pytest.mark.parametrize("error", [KeyError("a"), RuntimeError("a bug"), FileNotFoundError(2, "No such file", "x")])
def test_all_else_is_left_as_it_is(error):
    with pytest.raises(type(error)) as caught:
        raised_in(error, "out")
    assert caught.value is error


def test_a_result_that_cannot_be_written_names_its_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_json(tmp_path / "o.json", {"a": 1})
    assert caught.value.filename == str(tmp_path / "o.json")
    assert list(tmp_path.iterdir()) == []
