"""Token rows and option lengths of the original, for every task and mode."""

import pytest
from support.golden import DATA, facts

from justforward.scoring.prompts import PromptEncoder
from justforward.tasks import get_task

CASES = [
    (task, mode)
    for task, recorded in facts("encode").items()
    for mode in recorded["modes"]
    if mode != "gold_icl4"  # training rows with demonstrations, which only the original could make
]
LENGTHS = {"trunc24": (24, 50), "trunc3": (3, 50), "trunc40_mnt10": (40, 10), "gold_trunc40_mnt10": (40, 10)}


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_token_rows(golden, name, mode):
    recorded = facts("encode")[name]
    task = get_task(name)
    splits = task.load(DATA)
    sample = splits.validation[recorded["sample"]]
    truncates_demonstrations = mode.startswith("trunc") and not task.generation
    shown = "icl4" in mode or mode == "icl_sfc" or truncates_demonstrations
    demonstrations = [splits.train[i] for i in recorded["demonstrations"]] if shown else []
    max_length, max_new_tokens = LENGTHS.get(mode, (2048, 50))
    encoder = PromptEncoder(
        golden.tokenizer, task, max_length=max_length, max_new_tokens=max_new_tokens, bos_token_id=golden.bos_token_id
    )
    expected = recorded["modes"][mode]
    if mode.startswith("gold"):
        rows = [encoder.gold(sample)]
    elif task.generation:
        assert [list(encoder.generation(sample, demonstrations))] == expected["ids"]
        return
    else:
        rows = encoder.candidates(sample, demonstrations, calibration="sfc" in mode)
    assert [list(row.tokens) for row in rows] == expected["ids"]
    # A row that is cut into its option still starts with a token that is not scored.
    lengths = [min(n, len(ids) - 1) for n, ids in zip(expected["option_lens"], expected["ids"], strict=True)]
    assert [len(row.tokens) - row.start for row in rows] == lengths
