"""The words of `justforward sweep`, and what they must not be."""

import pytest

from justforward.commands.cli import main
from justforward.sweep.options import parse
from justforward.sweep.study import _grid

JOB = ["--trainer", "zo", "--num_train", "8", "--num_dev", "4", "--train_set_seed", "0", "--max_steps", "8"]

# fmt: off
WRONG = [
    (JOB[:4] + JOB[6:], "justforward sweep: chooses on the development set, never on the evaluation samples"),
    ([*JOB, "--num_dev", "0"], "justforward sweep: chooses on the development set, never on the evaluation samples"),
    (["--num_train", "4"], "justforward sweep: searches settings of MeZO: give --trainer zo"),
    ([*JOB, "--learning_rate", "1e-6"], "justforward sweep sets --learning_rate itself: give --lr LOW:HIGH"),
    ([*JOB, "--zo-eps=auto"], "justforward sweep sets --zo_eps itself: give --eps"),
    ([*JOB, "--output_dir", "x"], "justforward sweep sets --output_dir itself: runs are kept beside --storage"),
    ([*JOB, "--eval_strategy", "no"], "justforward sweep: compares runs by their evaluations"),
    ([*JOB, "--seeds", "0, 0"], "justforward sweep: --seeds 0, 0: give different seeds"),
    ([*JOB, "--storage", "runs"], "justforward sweep: --storage runs: name a log"),
    ([*JOB, "--trials", "0"], "justforward sweep: --trials and --best must be at least 1"),
    ([*JOB, "--trials", "many"], "argument --trials: invalid int value: 'many'"),
    ([*JOB, "--sampler", "random"], "argument --sampler: invalid choice: 'random'"),
    ([*JOB, "--seeds", "0,0"], "justforward sweep: --seeds 0,0: give different seeds below 2**32, such as 0,1,2"),
    ([*JOB, "--seeds", "a"], "justforward sweep: --seeds a: give different seeds"),
    ([*JOB, "--lr", "1e-6:1e-7"], "justforward sweep: --lr 1e-6:1e-7: the lowest comes first, such as 1e-7:1e-6"),
    ([*JOB, "--lr", "0:1"], "justforward sweep: --lr: '0' is no number above 0; written --lr 1e-7:1e-6"),
    ([*JOB, "--eps", "1e-3,x"], "justforward sweep: --eps: 'x' is no number above 0; written --eps 1e-3,1e-2"),
    ([*JOB, "--storage", "a.json"], "justforward sweep: --storage a.json: name a log"),
    ([*JOB, "--num_trian", "4"], "unknown argument '--num_trian' (did you mean '--num_train'?)"),
]
# fmt: on


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[" ".join(words[-2:]) for words, _ in WRONG])
def test_mistakes_are_one_line(words, said, capsys):
    assert main(["sweep", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"justforward: error: {said}")


def test_ranges_follow_the_tuning_and_may_be_given():
    assert (parse(JOB).lr, parse(JOB).eps) == ((1e-7, 1e-6), (1e-3,))
    assert parse([*JOB, "--lora"]).eps == (1e-2,)
    assert parse([*JOB, "--prefix_tuning"]).lr == (1e-3, 1e-2)
    given = parse([*JOB, "--lr", "1e-5:1e-3", "--eps", "1e-2,1e-1"])
    assert (given.lr, given.eps) == ((1e-5, 1e-3), (1e-2, 1e-1))
    assert parse([*JOB, "--lr", "1e-5"]).lr == (1e-5, 1e-5)


def test_runs_are_evaluated_on_the_development_set_alone():
    base = parse(JOB).base
    assert base.job.no_eval
    assert (base.training_kwargs["eval_strategy"], base.training_kwargs["eval_steps"]) == ("steps", 0.25)
    assert base.training_kwargs["save_strategy"] == "no"
    assert not {"--no_eval", "--eval_steps", "--output_dir"} & set(parse(JOB).words)


def test_the_grid_is_even_on_a_logarithmic_scale():
    points = _grid(parse([*JOB, "--lr", "1e-6:1e-4", "--eps", "1e-3,1e-2", "--trials", "6"]))
    assert points == pytest.approx([1e-6, 1e-5, 1e-4])
    assert _grid(parse([*JOB, "--lr", "1e-6:1e-4", "--trials", "1"])) == [1e-5]
