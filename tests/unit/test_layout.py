"""Which layout a model gets on which GPUs."""

import pytest
from support.golden import MODEL

from justforward.cli import main
from justforward.layout import choose_layout, weight_bytes
from justforward.machine import GIB
from justforward.models.loading import load


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_bytes_are_those_of_the_loaded_model(dtype):
    parameters = sum(p.numel() for p in load(MODEL).model.parameters())
    assert weight_bytes(MODEL, dtype) == parameters * (2 if dtype == "float16" else 4)


@pytest.mark.parametrize(
    ("weights", "gpus", "batch", "expected"),
    [
        (26, [80] * 4, 16, "data4"),  # OPT-13B in 16 bits
        (26, [80] * 3, 16, "data2"),  # 3 processes cannot share 16 examples evenly
        (26, [80] * 3, None, "data3"),
        (63, [80] * 4, 16, "spread"),  # a batch would not fit beside it
        (132, [80] * 4, 16, "spread"),
        (26, [80, 24], 16, "spread"),  # the smallest counts
        (26, [80], 16, "spread"),
        (26, [], 16, "spread"),
    ],
)
def test_copies_where_they_fit(weights, gpus, batch, expected):
    assert str(choose_layout(weights * GIB, [g * GIB for g in gpus], batch)) == expected


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
