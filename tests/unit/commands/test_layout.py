"""Which layout a model gets on which GPUs."""

import pytest
import torch
from support.golden import MODEL
from transformers import AutoModelForCausalLM, OPTConfig

from justforward.commands.cli import main
from justforward.machine import GIB
from justforward.models.loading import load
from justforward.planning.shape import read_shape, shape_of
from justforward.planning.target import choose_layout, copy_bytes


def test_a_copy_needs_its_weights_and_more_for_wider_ones():
    shape = read_shape(MODEL)
    assert shape.parameters == sum(p.numel() for p in load(MODEL).model.parameters())
    assert 2 * shape.parameters < copy_bytes(shape, 2) < copy_bytes(shape, 4)


@pytest.mark.parametrize(
    ("need", "gpus", "batch", "expected"),
    [
        (33, [80] * 4, 16, "data4"),
        (33, [80] * 3, 16, "data2"),  # 3 processes cannot share 16 examples evenly
        (33, [80] * 3, None, "data3"),
        (81, [80] * 4, 16, "spread"),
        (132, [80] * 4, 16, "spread"),
        (33, [80, 24], 16, "spread"),  # the smallest counts
        (33, [80], 16, "spread"),
        (33, [], 16, "spread"),
    ],
)
def test_copies_where_they_fit(need, gpus, batch, expected):
    assert str(choose_layout(need * GIB, [g * GIB for g in gpus], batch)) == expected


@pytest.mark.parametrize(("layers", "width", "heads", "gpus", "expected"), [
    (40, 5120, 40, [80] * 4, "data4"),  # OPT-13B
    (48, 7168, 56, [80] * 4, "data4"),  # OPT-30B: 56 GiB of weights, and a pass beside them
    (64, 9216, 72, [80] * 4, "spread"),  # OPT-66B
    (40, 5120, 40, [24] * 4, "spread"),
])  # fmt: skip
def test_the_papers_models(layers, width, heads, gpus, expected):
    sizes = {"hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": 4 * width, "num_hidden_layers": layers}
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(OPTConfig(**sizes, num_attention_heads=heads)))
    assert str(choose_layout(copy_bytes(shape, 2), [g * GIB for g in gpus], 16)) == expected


def test_command(capsys):
    assert main(["layout", MODEL, "--gpus", "2x80", "--batch", "16"]) == 0
    said = capsys.readouterr()
    assert said.out == "data2\n"
    assert "fits each of 2 GPUs" in said.err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([MODEL, "--gpus", "four"], "argument --gpus: expected COUNTxGIB, as in 4x80, got 'four'"),
        ([MODEL, "--gpus", "4x80", "--batch", "0"], "argument --batch: must be at least 1, got 0"),
        (["./nowhere"], "MODEL ./nowhere: no such file or folder"),
    ],
)
def test_mistakes(words, reason, capsys):
    assert main(["layout", *words]) == 2
    assert reason in capsys.readouterr().err
