"""Whatever a model's folder says about generation, answers are the same and the model can be saved.

Every field that the installed GenerationConfig has is set to values of every kind that JSON has, in either file.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.making import bigram, byte_level, fast, piece
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from justforward.models.generation_config import read
from justforward.models.loading import LoadedModel, load
from justforward.scoring.generation import GenerationSettings, Generator, set_aside

TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id"}
FIELDS = [name for name in vars(GenerationConfig()) if not name.startswith("_") and name not in TOKENS]
VALUES = [
    True,
    1,
    2,
    5,
    -1,
    0.3,
    5.0,
    "static",
    "never",
    "ari",
    [2],
    [[2]],
    [[[2], -5.0]],
    [2, 1.5],
    {"a": 1},
    "",
    [],
    {},
]
MANNERS: list[dict[str, Any]] = [{}, {"num_beams": 2}, {"sampling": True, "top_k": 5}]
STOPS = ["\n", ".\n", ".", "k", "sju", "Z", "</s>"]

Answers = Callable[[], list[list[str]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> LoadedModel:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = fast(byte_level([" Paris", ".\n", "junk"]))
    paris, stop, junk = (piece(tokenizer, text) for text in (" Paris", ".\n", "junk"))
    bigram(folder, tokenizer, {paris: stop, stop: junk, junk: junk}, paris, generation={})
    return load(str(folder))


@pytest.fixture(scope="module")
def answers(model) -> Answers:
    """What is written for every stop text in one manner each."""
    prompts = [model.tokenizer.encode(text) for text in ("The capital of Where is", "of There")]
    generators = [
        Generator(model.model, model.tokenizer, GenerationSettings(max_new_tokens=5, eos_token=stop, **manner))
        for stop, manner in zip(STOPS, MANNERS * 3, strict=False)
    ]

    def write() -> list[list[str]]:
        torch.manual_seed(0)
        return [generator.generate(prompts) for generator in generators]

    return write


@pytest.fixture(scope="module")
def expected(answers) -> list[list[str]]:
    found = answers()
    texts = ["Paris.", "Paris", "Paris", "Paris.\njun", *["Paris.\njunkjunkjunk"] * 3]
    assert found == [[text, text] for text in texts]
    return found


def check(model: LoadedModel, given: dict[str, Any], inner: dict[str, Any], folder: Path) -> None:
    """Read a folder, and save what training makes of it."""
    described = json.loads((Path(model.model.name_or_path) / "config.json").read_text())
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
def test_one_field(name, model, answers, expected, tmp_path):
    for value in VALUES:
        check(model, {name: value}, {}, tmp_path)
        if set_aside(model.model.generation_config):
            assert answers() == expected, value
        save(model, tmp_path)
        check(model, {}, {name: value}, tmp_path)
        save(model, tmp_path)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(VALUES), min_size=2), st.booleans())
def test_several_fields(model, answers, expected, tmp_path, fields, inner):
    check(model, {} if inner else fields, fields if inner else {}, tmp_path)
    assert answers() == expected
    save(model, tmp_path)
