"""What --zo_method stands for on the command line, and which parts do not go together."""

import pytest
from support.golden import MODEL

from justforward.command_line.arguments import parse
from justforward.command_line.specs import job_specs
from justforward.commands.cli import main
from justforward.optim.directions.base import DIRECTIONS
from justforward.optim.methods import METHODS
from justforward.optim.rules.base import RULES
from justforward.optim.rules.estimate import SHAPINGS

ZO = ["--trainer", "zo", "--num_train", "8", "--train_set_seed", "0"]
PARTS = {"zo_method": METHODS, "zo_directions": DIRECTIONS.names(), "zo_rule": RULES.names(), "zo_shaping": SHAPINGS}


@pytest.mark.parametrize("argument", PARTS)
def test_every_part_can_be_chosen(argument):
    (choices,) = [spec.choices for spec in job_specs() if spec.name == argument]
    assert sorted(choices or ()) == sorted(PARTS[argument])


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_what_every_method_has(method):
    job, source = parse([*ZO, "--zo_method", method]).job, METHODS[method]
    assert (job.zo_samples, job.zo_sides, job.zo_split) == (source.samples, source.sides, source.split)
    assert (job.zo_shaping, job.zo_distribution, job.zo_eps) == (source.shaping, source.distribution, source.eps)


def test_what_is_given_wins():
    job = parse([*ZO, "--zo_method", "fzoo", "--zo_samples", "4", "--zo_eps", "1e-4", "--zo_shaping", "none"]).job
    assert (job.zo_samples, job.zo_eps, job.zo_shaping, job.zo_sides) == (4, 1e-4, "none", 1)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("--zo_method mezzo", "unknown value 'mezzo' (did you mean 'mezo'?)"),
        ("--zo_method grzo --zo_sides 1", "takes --zo_sides 2, and --zo_samples 2 or more"),
        ("--zo_split", "takes --zo_sides 2, and --zo_samples 2 or more"),
        ("--zo_method grzo --zo_direction_groups 2", "leave --zo_direction_groups out"),
        ("--zo_sides 1 --zo_shaping deviation", "raise --zo_samples"),
        ("--zo_method lozo --zo_distribution rademacher", "is for dense directions, and these are low_rank"),
        ("--zo_method lozo --zo_offload cpu", "leave out --fsdp and --zo_offload, or use dense directions and sgd"),
        ("--zo_rule adam --fsdp full_shard", "the rule adam take whole weights on one device"),
        ("--zo_method subzero --zo_probe in_place", "--zo_probe in_place takes dense directions"),
        ("--zo_method adamezo --learning_rate auto", "the rule is rebuilt_adam: give a number"),
        ("--zo_method fzoo --learning_rate auto", "--zo_shaping deviation replaces them: give a number"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(words, fragment):
    with pytest.raises(ValueError, match=r"zo_|auto") as refused:
        parse([*ZO, *words.split()])
    assert fragment in str(refused.value)


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("--zo_rank 4", "--zo_method mezo: --zo_rank: no setting of the directions 'dense' or of the rule 'sgd'"),
        ("--zo_method lozo --zo_rank 0", "--zo_method lozo: rank and refresh must be at least 1, got 0 and 50"),
        ("--zo_method conmezo --zo_angle 3", "--zo_method conmezo: angle must be in (0, pi/2]"),
        ("--zo_method zo-adam --zo_beta1 1", "--zo_method zo-adam: beta1 must be at least 0 and below 1, got 1"),
        ("--zo_method adamezo --zo_window 0", "--zo_method adamezo: window must be at least 1, got 0"),
        ("--zo_method sparse-mezo --zo_sparsity 1", "--zo_method sparse-mezo: sparsity must be between 0 and 1"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_before_a_model_is_loaded(words, fragment, capsys):
    job = ["--task_name", "SST2", "--data_dir", str(MODEL).replace("tiny-opt-4k", "golden/data")]
    assert main([*job, "--model_name", "./nowhere", "--use_cpu", *ZO, *words.split()]) == 2
    assert fragment in capsys.readouterr().err
