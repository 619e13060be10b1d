"""What is read of a model's generation config: what can be saved again, and the end tokens of both files."""

import json

import pytest
from transformers import GenerationConfig

from justforward.models.generation_config import read, savable, token_ids


def folder(path, config, generation=None):
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return {"pretrained_model_name_or_path": str(path)}


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 2}, {"eos_token_id": 2}, 2),
        ({"eos_token_id": 2}, {"eos_token_id": [3, 2]}, [3, 2]),
        ({"eos_token_id": [2, 4]}, {"eos_token_id": [3, 2]}, [3, 2, 4]),
        ({"eos_token_id": 2}, {}, [2]),
        ({"eos_token_id": 2}, None, 2),
        ({"eos_token_id": None}, {"eos_token_id": 3}, 3),
        ({"text_config": {"eos_token_id": [1, 106]}}, {"eos_token_id": 1}, [1, 106]),
        ({"text_config": {"eos_token_id": [1, 106]}}, None, [1, 106]),
        ({"text_config": {"eos_token_id": 5}, "eos_token_id": 6}, {}, [6]),
        ({}, {}, None),
        ({}, None, None),
    ],
)
def test_end_tokens_are_those_of_both_files_and_of_no_class(config, generation, expected, tmp_path):
    found = read(folder(tmp_path, config, generation))
    assert found is not None
    assert found.eos_token_id == expected


def test_a_gguf_file_has_none_of_its_own(tmp_path):
    assert read({"pretrained_model_name_or_path": str(tmp_path), "gguf_file": "a.gguf"}) is None


def test_token_ids():
    assert [token_ids(given) for given in (None, 3, 0, [3, 4], (5,), True, "x", [1, None, "2", -1], 2.0)] == [
        *[[], [3], [0], [3, 4], [5], [], [], [1], []],
    ]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, {}),
        ({"temperature": 0.9, "do_sample": True}, {"temperature": 0.9, "do_sample": True}),
        ({"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}, {"eos_token_id": 2}),
        ({"temperature": 1.0, "top_k": 50, "do_sample": None}, {"temperature": 1.0, "top_k": 50, "do_sample": None}),
        ({"temperature": 0.5, "do_sample": False}, {"do_sample": False}),
        ({"length_penalty": 2.0, "num_beams": 1}, {"num_beams": 1}),
        ({"num_return_sequences": 2, "num_beams": 4}, {"num_return_sequences": 2, "num_beams": 4}),
        ({"num_return_sequences": 2, "repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"output_scores": True, "return_dict_in_generate": True}, None),
        ({"max_new_tokens": "many", "early_stopping": [1], "streamer": 1, "own": {"a": 1}}, {"own": {"a": 1}}),
    ],
)
def test_what_is_refused_is_left_out_and_no_more(given, kept):
    assert savable(given) == (given if kept is None else kept)


def test_a_setting_may_need_one_that_comes_later():
    given = {"temperature": 0.9, "max_new_tokens": "many", "do_sample": True}
    assert savable(given) == {"temperature": 0.9, "do_sample": True}


def test_what_is_read_can_be_changed_and_saved(tmp_path):
    found = read(folder(tmp_path, {"temperature": 0.7, "num_beams": 1, "length_penalty": 3.0}, None))
    assert found is not None
    found.pad_token_id = 0
    found.save_pretrained(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").pad_token_id == 0


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\xff", "<html>"])
def test_a_file_that_is_no_object_is_named(text, tmp_path):
    source = folder(tmp_path, {})
    (tmp_path / "generation_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^generation_config.json .*: mend it, or remove it$"):
        read(source)
