import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from justforward.tasks.sampling import eval_indices, one_per_eval_seeds, sample_indices, train_sets

seeds = st.integers(0, 2**32 - 1)
unhurried = settings(deadline=None, max_examples=60)


def sets(n_rows, **asked):
    defaults = {
        "num_train": 8,
        "num_dev": None,
        "num_train_sets": None,
        "train_set_seed": None,
        "num_eval_samples": 3,
    }
    return train_sets(n_rows, **{**defaults, **asked})


@unhurried
@given(n_rows=st.integers(1, 200), num=st.integers(0, 250), seed=seeds, exclude=st.none() | st.integers(0, 199))
def test_sample_is_distinct_rows_without_the_excluded(n_rows, num, seed, exclude):
    found = sample_indices(n_rows, num, seed, exclude)
    available = set(range(n_rows)) - {exclude}
    assert set(found) <= available
    assert len(set(found)) == len(found) == min(num, len(available))


@unhurried
@given(n_rows=st.integers(1, 200), small=st.integers(0, 100), more=st.integers(0, 100), seed=seeds)
def test_a_larger_sample_begins_with_the_smaller(n_rows, small, more, seed):
    assert sample_indices(n_rows, small + more, seed)[: min(small, n_rows)] == sample_indices(n_rows, small, seed)


@unhurried
@given(n_rows=st.integers(1, 200), num_train=st.integers(0, 250), num_dev=st.integers(0, 250), seed=seeds)
def test_train_and_dev_are_disjoint_and_share_scarce_rows(n_rows, num_train, num_dev, seed):
    (found,) = sets(n_rows, num_train=num_train, num_dev=num_dev, train_set_seed=seed)
    assert not set(found.train) & set(found.dev)
    assert set(found.train) | set(found.dev) <= set(range(n_rows))
    if num_train + num_dev <= n_rows:
        assert (len(found.train), len(found.dev)) == (num_train, num_dev)
    else:
        assert len(found.dev) == min(num_dev, n_rows // 2)
        assert len(found.train) == min(num_train, n_rows - len(found.dev))


def test_the_scarce_tasks_of_the_scripts(caplog):
    # WSC with the scripts' 1,000 + 500: half of the 554 rows each, not 54 rows to train on.
    (wsc,) = sets(554, num_train=1000, num_dev=500, train_set_seed=0)
    assert (len(wsc.train), len(wsc.dev)) == (277, 277)
    # CB with its 1,000 + 100.
    (cb,) = sets(250, num_train=1000, num_dev=100, train_set_seed=0)
    assert (len(cb.train), len(cb.dev)) == (150, 100)
    asked = "num_train 1000 and num_dev"
    assert [record.getMessage() for record in caplog.records] == [
        f"{asked} 500 ask for more than the 554 training rows: using 277 to train, 277 for development",
        f"{asked} 100 ask for more than the 250 training rows: using 150 to train, 100 for development",
    ]


def test_the_seed_wins_over_the_number_of_sets(caplog):
    assert [s.seed for s in sets(40, train_set_seed=7, num_train_sets=3)] == [7]
    assert "num_train_sets (3) is not used" in caplog.text


def test_zero_shot_has_one_empty_set_per_evaluation_sample(caplog):
    found = sets(40, num_train=0, num_eval_samples=5)
    assert [s.seed for s in found] == one_per_eval_seeds(5)
    assert all(s.train == s.dev == [] for s in found)
    assert not caplog.records


def test_no_dev_rows_is_no_dev_set():
    assert sets(40, num_dev=0, train_set_seed=1) == sets(40, num_dev=None, train_set_seed=1)


def test_all_evaluation_rows_keep_their_order():
    assert eval_indices(5, None, seed=3) == [0, 1, 2, 3, 4]


def test_too_many_evaluation_rows_warns(caplog):
    assert sorted(eval_indices(5, 9, seed=0)) == [0, 1, 2, 3, 4]
    assert "num_eval is 9, but there are 5 rows" in caplog.text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"num_train": -1}, "num_train must be at least 0, not -1"),
        ({"num_dev": -4}, "num_dev must be at least 0, not -4"),
        ({"num_train_sets": 0}, "num_train_sets must be at least 1, not 0"),
        ({"train_set_seed": -1}, "train_set_seed must be between 0 and 4294967295, not -1"),
        ({"num_dev": 4}, "num_dev needs one train set for all: give train_set_seed"),
    ],
)
def test_arguments_out_of_range(asked, message):
    with pytest.raises(ValueError, match=message):
        sets(40, **asked)


@pytest.mark.parametrize(("num_eval", "seed", "name"), [(0, 0, "num_eval"), (4, -2, "the seed of the evaluation set")])
def test_evaluation_arguments_out_of_range(num_eval, seed, name):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        eval_indices(40, num_eval, seed)
