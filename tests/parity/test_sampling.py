"""The original program's choice of rows for every seed and mode, and the heads of the full data sets' permutations."""

import json
import re
from pathlib import Path

import pytest

from justforward.tasks.sampling import eval_indices, one_per_eval_seeds, sample_indices, train_sets

FACTS = json.loads((Path(__file__).parents[1] / "fixtures" / "golden" / "sampling.json").read_text(encoding="utf-8"))
SETS = FACTS["sets"]
N_TRAIN, N_VALIDATION = 40, 20


def drawn(**asked):
    defaults = {"num_dev": None, "num_train_sets": None, "train_set_seed": None, "num_eval_samples": N_VALIDATION}
    return [s.train + s.dev for s in train_sets(N_TRAIN, **{**defaults, **asked})]


@pytest.mark.parametrize("fact", [f for f in SETS if re.fullmatch(r"(train|valid)_seed\d+_num\d+", f)])
def test_one_draw(fact):
    split, seed, num = re.findall(r"train|valid|\d+", fact)
    if split == "train":
        assert sample_indices(N_TRAIN, int(num), int(seed)) == SETS[fact]
    else:
        assert eval_indices(N_VALIDATION, int(num), int(seed)) == SETS[fact]


def test_excluded_row():
    first = SETS["train_seed0_num4"][0]
    assert sample_indices(N_TRAIN, 4, 0, exclude=first) == SETS["train_seed0_num4_exclude_first"]


def test_several_sets():
    assert drawn(num_train=4, num_train_sets=3) == SETS["sets_num_train_sets3_num4"]


def test_dev_comes_from_the_end_of_the_draw():
    (found,) = train_sets(N_TRAIN, num_train=8, num_dev=4, num_train_sets=None, train_set_seed=42, num_eval_samples=20)
    (recorded,) = SETS["sets_seed42_num8_dev4"]
    assert (found.seed, found.train, found.dev) == (42, recorded[:8], recorded[8:])


def test_one_set_per_evaluation_sample():
    assert drawn(num_train=4) == SETS["one_per_eval_num4"]
    assert drawn(num_train=4, num_eval_samples=5) == SETS["one_per_eval_num4_eval5"]


def test_seeds_of_the_sets_per_evaluation_sample():
    assert one_per_eval_seeds(20) == FACTS["one_per_eval_seeds_20"]
    seeds = one_per_eval_seeds(1000)
    assert seeds[:10] + seeds[-5:] == FACTS["one_per_eval_seeds_1000_head10_tail5"]


@pytest.mark.parametrize("task", FACTS["large"])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_sizes_of_the_real_data_sets(task, seed):
    recorded = FACTS["large"][task]
    found = sample_indices(recorded["n"], 1000, seed)
    assert found[:8] == recorded[f"seed{seed}_head8"]
    # The last of 1,000, or of all rows where there are fewer.
    assert found[-1] == recorded[f"seed{seed}_999"]
