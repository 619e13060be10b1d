"""What differs between versions: older ways are held to the present ones, and the table of what was tested to files."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from support.making import byte_level, fast

from justforward import compat
from justforward.scoring.positions import Kept

ROOT = Path(__file__).parents[2]
CONTROL = re.compile("</s>|<s>")
MARKED = "\ue000</s>\ue001"


@pytest.mark.parametrize("text", ["a</s>b", "</s>", "<s> two</s></s>\n", "none"])
def test_marked_tokens_are_encoded_as_before_transformers_had_it(text):
    tokenizer = fast(byte_level(["two"]))
    told = compat.encode_marked(tokenizer, compat.mark_control_tokens(text, CONTROL))
    assert compat._encoded(tokenizer, compat._marked(text, CONTROL)) == told
    assert not set(tokenizer.all_special_ids) & set(told)
    assert tokenizer.decode(told) == text


def test_what_is_not_marked_stays_a_token_and_parted_marks_part_the_text():
    tokenizer = fast(byte_level())
    end: Any = tokenizer.eos_token_id
    assert compat._encoded(tokenizer, f"</s>{MARKED}</s>").count(end) == 2
    assert end not in compat._encoded(tokenizer, "a</\ue000s>")
    assert compat._marked({"a": ("<s>", 1)}, CONTROL) == {"a": ["\ue000<s>\ue001", 1]}


def test_fields_have_the_names_of_the_installed_version(monkeypatch):
    monkeypatch.setattr(compat, "NEW_NAMES", {"gradient_checkpointing": "activation_checkpointing"})
    given = {"activation_checkpointing": True, "max_steps": 3}
    assert compat.training_fields(given) == {"gradient_checkpointing": True, "max_steps": 3}


def test_kept_positions_index_as_a_mask_does():
    mask = torch.tensor([[True, False, True], [False, True, False]])
    states = torch.randn(2, 3, 5, requires_grad=True)
    kept = Kept.of(mask)
    for found in (states[kept], states[:, kept, :], states[kept.to("cpu", copy=True)]):
        assert type(found) is torch.Tensor
        assert torch.equal(found, states[mask])
    assert torch.equal(kept.sum(1), mask.sum(1))
    assert type(kept.sum(1)) is torch.Tensor
    (slope,) = torch.autograd.grad(states[kept].square().sum(), states)
    assert torch.equal(slope, 2 * states * mask[..., None])


def versions_of(name):
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


@pytest.mark.parametrize(("label", "file"), [("lowest", "constraints-lowest.txt"), ("newest", "constraints.txt")])
def test_the_table_of_tested_versions_is_what_the_constraints_install(label, file):
    table = {name: version for name, version in compat.TESTED[label].items() if name != "python"}
    assert table.items() <= versions_of(file).items()


def test_the_lowest_versions_asked_for_are_those_that_were_run():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lowest = {name.lower(): version for name, version in versions_of("constraints-lowest.txt").items()}
    assert project["requires-python"] == f">={compat.TESTED['lowest']['python']}"
    for asked in map(Requirement, project["dependencies"]):
        (least,) = (each.version for each in asked.specifier if each.operator == ">=")
        assert f"{lowest[asked.name]}.".startswith(f"{least}."), asked


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, r"tested as it is \(newest versions\)"),
        ({"torch": "2.13.0+cpu", "python": "3.11.9"}, r"tested as it is \(newest versions\)"),
        ({"transformers": "5.20.0"}, "not tested as it is; each version lies between tested ones"),
        ({"torch": "2.99.0", "peft": "0.1"}, "torch is newer than any tested, peft is older than any tested"),
    ],
)
def test_where_versions_stand(changed, said):
    assert re.fullmatch(said, compat.standing({**compat.TESTED["newest"], "rich": "1", **changed}))
