"""What libraries raise while they read a model, in one line; what files tell of themselves."""

import io
import json
import os
import pickle
import re
import zipfile
from contextlib import nullcontext

import pytest
import torch

from justforward.models.reading import PARTS, damage, reading
from justforward.models.sources import ModelError

SOURCE = {"pretrained_model_name_or_path": "a/b"}
RAISED = [
    KeyError("k"),
    RuntimeError("a\nb"),
    AssertionError(),
    Exception("x" * 900),
    TypeError("t"),
    EOFError("out"),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("raised", RAISED, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_is_one_line_with_its_cause(part, raised):
    with pytest.raises(ModelError) as caught, reading("a/b", SOURCE, part):
        raise raised
    said = str(caught.value)
    assert said == f"--model_name a/b: {caught.value.reason}"
    assert "\n" not in said
    assert len(said) < 450
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError(), "does not fit in memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "does not fit in memory"),
        (OSError("We couldn't connect to 'https://huggingface.co' to load"), "no such folder, and the hub cannot be"),
        (pickle.UnpicklingError("Weights only load failed"), "holds Python objects beside tensors"),
        (ValueError("Pass trust_remote_code=True to allow it"), "give --trust_remote_code"),
        (ImportError("This needs timm: pip install timm"), "This needs timm: pip install timm"),
        (OSError("No file. " + "And much more of it. " * 30), "No file. And much more"),
    ],
)
def test_what_is_known_comes_with_its_mend(raised, said):
    with pytest.raises(ModelError, match=r"^--model_name a/b: ") as caught, reading("a/b", SOURCE, "weights"):
        raise raised
    assert caught.value.reason.startswith(said) or said in caught.value.reason
    assert len(caught.value.reason) < 250


@pytest.mark.parametrize("raised", [ImportError("pip install it"), RuntimeError("a GPU is required"), KeyError("bits")])
def test_a_quantised_model_is_told_as_one(raised):
    """What is not here is the cause, and no copy of the files a mend."""
    with pytest.raises(ModelError) as caught, reading("a/b", SOURCE, "weights", "spqr"):
        raise raised
    said = f"it is stored quantised by spqr, which does not work here ({type(raised).__name__}: {raised}): mend that,"
    assert caught.value.reason.startswith(said)
    assert "again" not in caught.value.reason


def test_an_interrupt_is_none_of_its_business():
    with pytest.raises(KeyboardInterrupt), reading("a/b", SOURCE, "weights"):
        raise KeyboardInterrupt


def test_only_the_files_of_a_part_are_looked_at(tmp_path):
    source = {"pretrained_model_name_or_path": str(tmp_path)}
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with reading("m", source, "configuration"), reading("m", source, "tokenizer"), reading("m", source, "run"):
        pass
    with pytest.raises(ModelError, match=r"model\.safetensors is empty"), reading("m", source, "weights"):
        pass


def archive(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo(name), b"0" * 100)  # its time is always the same, as the tests' names must be
    return buffer.getvalue()


def safetensors(**tensors):
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("model.safetensors", safetensors() + b"0", "is too long, 11 bytes instead of 10"),
        ("model.safetensors", safetensors(a={"data_offsets": [0, 4]}) + b"123", "is cut short, "),
        ("model.safetensors", safetensors(a=[1]), "is no safetensors file"),
        ("model.safetensors", (1 << 40).to_bytes(8, "little"), "is no safetensors file"),
        ("pytorch_model.bin", archive("a")[:60], "is cut short, at 60 bytes"),
        ("pytorch_model.bin", b"hello", "is no file of weights"),
        ("a.gguf", b"GGML", "is no GGUF file"),
        ("tokenizer_config.json", b'{"weight_map": {}}', "is the file of something else"),
        ("generation_config.json", b'{"added_tokens": []}', "is the file of something else"),
        ("config.json", b'{"model_type": 1}', "is the file of something else"),
        ("model.safetensors.index.json", b'{"weight_map": []}', 'it has no "weight_map"'),
        ("tokenizer.model", b"  <!DOCTYPE html>", "is a web page"),
    ],
)
def test_damage_that_shows(name, data, said, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert said in (damage(tmp_path / name) or "")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", safetensors()),
        ("generation_config.json", b"{}"),
        ("generation_config.json", b'{"eos_token_id": 2}'),
        ("tokenizer_config.json", b'{"bos_token": "<s>"}'),
        ("special_tokens_map.json", b"{}"),
        ("tokenizer.model", b"\n\x0e\n\x05"),
        ("merges.txt", b"#version: 0.2"),
    ],
)
def test_no_damage(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    assert damage(tmp_path / name) is None


def test_what_torch_saves_is_whole(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert damage(tmp_path / "pytorch_model.bin") is None
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    assert damage(tmp_path / "model.bin") is None


def test_merges_that_do_not_make_the_vocabulary(tmp_path):
    pairs = [f"{a} {b}" for a in "abcdefgh" for b in "abcdefgh"]
    made = [pair.replace(" ", "") for pair in pairs]
    words = ["<s>", "<|endoftext|>", "[PAD]", "madeupword0000", *"abcdefgh", *made]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    assert damage(tmp_path / "merges.txt") is None
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs[:32]]))
    assert "does not make 33 of the 68 tokens" in (damage(tmp_path / "merges.txt") or "")


def test_a_path_that_is_no_text(tmp_path):
    folder = tmp_path / os.fsdecode(b"m\xff")
    folder.mkdir()
    source = {"pretrained_model_name_or_path": str(folder)}
    with reading("m", source, "tokenizer"):
        pass
    with (
        pytest.raises(ModelError, match=r"the path is no text in utf-8, .*: rename it"),
        reading("m", source, "tokenizer"),
    ):
        raise TypeError("no str")


def index(**told):
    return json.dumps({"weight_map": told}).encode()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors.index.json": b'{"weight_map":'}, "model.safetensors.index.json is damaged, it is not val"),
        ({"model.safetensors.index.json": b"[]"}, "model.safetensors.index.json is the file of something else"),
        ({"pytorch_model.bin.index.json": b""}, "pytorch_model.bin.index.json is empty"),
        (
            {"model.safetensors.index.json": index(a="model-1.safetensors"), "model-2.safetensors": safetensors()},
            "model.safetensors.index.json names model-1.safetensors, not there",
        ),
        ({"model.safetensors": safetensors(), "model.safetensors.index.json": b"[]"}, None),
        ({"model.safetensors": safetensors(), "pytorch_model.bin.index.json": b"[]"}, None),
        ({"model.safetensors.index.json": index(a="a.safetensors"), "a.safetensors": safetensors()}, None),
    ],
)
def test_an_index_of_weights_is_looked_at_where_it_is_read(files, said, tmp_path):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    expected = nullcontext() if said is None else pytest.raises(ModelError, match=f"^--model_name m: {re.escape(said)}")
    with expected, reading("m", {"pretrained_model_name_or_path": str(tmp_path)}, "weights"):
        pass


def test_what_the_cache_of_the_hub_lacks_is_still_to_be_downloaded(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors.index.json").write_bytes(index(a="model-1.safetensors"))
    monkeypatch.setattr("justforward.models.reading.folder_of", lambda source: tmp_path)
    with reading("a/b", SOURCE, "weights"):
        pass


def test_a_broken_link(tmp_path):
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    assert damage(tmp_path / "model.safetensors") == "cannot be read: No such file or directory"
