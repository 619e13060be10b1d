"""Damaged checkpoints and every family of transformers: the right value, or one line; never a traceback, or silence."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import given, note
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.cases import cases
from support.golden import MODEL
from support.making import byte_level, fast, random_llama

from bench.causality import FAMILIES, NOT_CAUSAL, tiny_model
from justforward.models.causality import EARLIER, is_causal, may_be_causal, plain_tokens
from justforward.models.loading import load
from justforward.models.sources import ModelError

SHAPES = ("one file", "shards", "torch", "vocabulary and merges")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"
OTHERS = (b"", POINTER, b"<html>404</html>", b"[1, 2]", b"7", b'"text"', b"Not found", bytes(100))
SAID_BY_NOTHING_ELSE = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
"""Files that may as well be empty objects or missing: what they said is then nowhere else."""


def value(folder: Path) -> tuple:
    """What a checkpoint computes, as far as scores and texts depend on it."""
    loaded = load(str(folder))
    tokens = loaded.tokenizer("a good day is\nbad").input_ids
    with torch.no_grad():
        logits = loaded.model(torch.tensor([tokens])).logits
    return tokens, loaded.bos_token_id, loaded.tokenizer.eos_token_id, loaded.max_length, logits.tolist()


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint and what it computes."""

    folder: Path
    value: tuple = field(repr=False)

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    place = tmp_path_factory.mktemp("checkpoints")
    for shape in SHAPES[:3]:
        random_llama(place / shape, fast(byte_level([" good", " bad"])))
    weights = load_file(place / "torch/model.safetensors")
    torch.save(weights, place / "torch/pytorch_model.bin")
    model = load(str(place / "shards")).model
    for shape in ("torch", "shards"):
        (place / shape / "model.safetensors").unlink()
    model.save_pretrained(place / "shards", max_shard_size="50KB")
    shutil.copytree(MODEL, place / SHAPES[3])
    return {shape: Checkpoint(place / shape, value(place / shape)) for shape in SHAPES}


@dataclass(frozen=True)
class Damage:
    """What becomes of a file: the one that stands at `place` among those of a checkpoint of some shape."""

    shape: str
    place: int
    kind: str
    share: float
    other: bytes
    number: int

    def of(self, own: bytes, files: list[bytes]) -> bytes | None:
        """Its bytes; None: it is gone."""
        if self.kind == "cut":
            return own[: int(self.share * len(own))]
        if self.kind == "swapped":
            return files[self.number % len(files)]
        return self.other if self.kind == "other" else None


DAMAGES = st.builds(
    Damage,
    st.sampled_from(SHAPES),
    st.integers(0, 20),
    st.sampled_from(["cut", "other", "swapped", "gone"]),
    st.floats(0, 0.95),
    st.sampled_from(OTHERS),
    st.integers(0, 20),
)


@given(DAMAGES)
@cases(40)
def test_a_damaged_file_changes_nothing_or_is_one_line(checkpoints, tmp_path, damage):
    whole = checkpoints[damage.shape]
    name = whole.files[damage.place % len(whole.files)]
    folder = tmp_path / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole.folder, folder)
    data = damage.of((folder / name).read_bytes(), [(folder / file).read_bytes() for file in whole.files])
    (folder / name).unlink()
    if data is not None:
        (folder / name).write_bytes(data)
    elif name in SAID_BY_NOTHING_ELSE:
        return
    note(name)
    try:
        found, said = value(folder), ""
    except ModelError as error:
        found, said = None, str(error)
    if found is not None:
        assert found == whole.value
        return
    assert said.startswith(f"--model_name {folder}: ")
    assert len(said.splitlines()) == 1
    assert len(said) < 600


def model_of(family: str):
    """A tiny random model, or a skip that says why there is none."""
    try:
        model = tiny_model(family)
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)
    except Exception as error:
        pytest.skip(f"{family} is not made small: {type(error).__name__}")
    return model


@pytest.mark.parametrize("family", sorted({*FAMILIES[::12], *sorted(NOT_CAUSAL)[::3], "gemma3", "git", "gpt2", "opt"}))
def test_causal_models_pass_and_others_do_not(family):
    """All families: `python -m bench.causality`."""
    model = model_of(family)
    assert is_causal(model, plain_tokens(model, None, EARLIER + 2)) == (family not in NOT_CAUSAL)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "opt", "llama"])
def test_a_configuration_alone_tells_as_much(family):
    assert may_be_causal(model_of(family).config) == (family not in NOT_CAUSAL)


def test_sizes_that_fit_nothing_small_are_left_to_the_weights():
    config = model_of("bert").config
    config.hidden_size = 100_000
    assert may_be_causal(config)
