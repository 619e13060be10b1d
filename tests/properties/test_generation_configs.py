"""Whatever a model's folder says about generation, answers are the same and the model can be saved.

Every field that the installed GenerationConfig has is set to values of every kind that JSON has, in either file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cases import cases
from support.making import bigram, byte_level, fast, piece
from support.older import align_special_tokens
from transformers import GenerationConfig, PreTrainedTokenizerBase

from justforward.models.generation_config import read
from justforward.models.loading import LoadedModel, load
from justforward.scoring.generation import GenerationSettings, Generator, set_aside

TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
FIELDS = [name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in TOKENS]
VALUES = [True, 2, -1, 0.3, 5.0, "static", "ari", [[2]], [[[2], -5.0]], {"a": 1}, "", []]
MANNERS: list[dict[str, Any]] = [{}, {"num_beams": 2}, {"sampling": True, "top_k": 5}]
STOPS = ["\n", ".\n", ".", "k", "sju", "Z", "</s>"]

Write = Callable[[int], list[str]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = fast(byte_level([" Paris", ".\n", "junk"]))
    paris, stop, junk = (piece(tokenizer, text) for text in (" Paris", ".\n", "junk"))
    bigram(folder, tokenizer, {paris: stop, stop: junk, junk: junk}, paris, generation={})
    return load(str(folder))


@pytest.fixture(scope="module")
def write(model) -> Write:
    """What is written with a stop text and in a manner that a number picks."""
    prompts = [model.tokenizer.encode(text) for text in ("The capital of Where is", "of There")]
    settings = [GenerationSettings(max_new_tokens=5, eos_token=stop, **manner) for stop in STOPS for manner in MANNERS]
    generators = [Generator(model.model, model.tokenizer, given) for given in settings]

    def write(number: int) -> list[str]:
        torch.manual_seed(0)
        return generators[number % len(generators)].generate(prompts)

    return write


@pytest.fixture(scope="module")
def expected(write) -> list[list[str]]:
    texts = ["Paris.", "Paris", "Paris", "Paris.\njun", *["Paris.\njunkjunkjunk"] * 3]
    found = [write(number) for number in range(len(STOPS) * len(MANNERS))]
    assert found == [[text, text] for text in texts for _ in MANNERS]
    return found


def check(model: LoadedModel, given: dict[str, Any], inner: dict[str, Any], folder: Path) -> None:
    """Read a folder, and save what training makes of it."""
    described = json.loads((Path(str(model.model.name_or_path)) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(inner | described))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if not inner:
        (folder / "generation_config.json").write_text(json.dumps(given))
    found = read({"pretrained_model_name_or_path": str(folder)})
    assert found is not None
    # As `from_pretrained` takes it.
    model.model.generation_config = type(found).from_dict(found.to_dict())
    set_aside(model.model.generation_config)


def save(model: LoadedModel, folder: Path) -> None:
    """As the Trainer saves: with the tokenizer's tokens, which makes the strict check apply."""
    assert isinstance(model.tokenizer, PreTrainedTokenizerBase)
    align_special_tokens(model.model, model.tokenizer)
    own = model.model.generation_config
    assert own is not None
    own.save_pretrained(folder / "saved")
    GenerationConfig.from_pretrained(folder / "saved").validate(strict=True)


@pytest.mark.parametrize("name", FIELDS)
def test_one_field(name, model, write, expected, tmp_path):
    for number, value in enumerate(VALUES, FIELDS.index(name)):
        check(model, {name: value}, {}, tmp_path)
        if set_aside(model.model.generation_config):
            assert write(number) == expected[number % len(expected)], value
        save(model, tmp_path)
        check(model, {}, {name: value}, tmp_path)
        save(model, tmp_path)


@cases(60)
@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(VALUES), min_size=2), st.integers(0, 99))
def test_several_fields(model, write, expected, tmp_path, fields, number):
    inner = number % 2 == 1
    check(model, {} if inner else fields, fields if inner else {}, tmp_path)
    assert write(number) == expected[number % len(expected)]
    save(model, tmp_path)
