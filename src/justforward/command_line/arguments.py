"""A command line, parsed and checked: a job's own arguments, and those handed on to Hugging Face's Trainer.

parsed = parse(["--task_name", "SST2", "--num_train", "32"])
parsed.job.num_train         # 32
parsed.training()            # transformers.TrainingArguments; this, and only this, imports transformers
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from justforward.command_line.checks import check, name_task
from justforward.command_line.job import JobArguments
from justforward.command_line.parser import build_parser, read_words, to_words
from justforward.command_line.specs import job_specs
from justforward.command_line.trainer_fields import AUTO, OUR_DEFAULTS, trainer_specs
from justforward.command_line.zeroth_order_checks import check_auto
from justforward.compat import training_fields
from justforward.optim.methods import get_method

if TYPE_CHECKING:
    from transformers import TrainingArguments

GUIDED_BLOCKS = "-3:"
"""What --trainer guided trains unless told: there the guide is nearest to the gradient."""


@dataclasses.dataclass(frozen=True)
class Parsed:
    """A checked command line.

    `training_kwargs` holds `output_dir` and whatever else of `TrainingArguments` was given; the rest keeps its
    defaults there. `notes` are one-line remarks on old spellings, for the user to read. `auto` names the arguments that
    are to be measured before training; their values here are placeholders.
    """

    job: JobArguments
    training_kwargs: dict[str, Any]
    notes: tuple[str, ...] = ()
    auto: tuple[str, ...] = ()

    def with_values(self, values: Mapping[str, Any]) -> Parsed:
        """These arguments with other values for some, which are then no longer "auto"."""
        own = {spec.name for spec in job_specs()} & set(values)
        job = dataclasses.replace(self.job, **{name: values[name] for name in own})
        trainers = {name: value for name, value in values.items() if name not in own}
        left = tuple(name for name in self.auto if name not in values)
        return dataclasses.replace(self, job=job, training_kwargs={**self.training_kwargs, **trainers}, auto=left)

    def training(self, **overrides: Any) -> TrainingArguments:
        """Hugging Face's object, with `overrides` in place of what was given.

        Imports transformers. Raises ValueError for what `TrainingArguments` refuses.
        """
        from transformers import TrainingArguments

        kwargs = {**self.training_kwargs, **overrides}
        try:
            if kwargs.get("parallelism_config") is not None:
                from accelerate.parallelism_config import ParallelismConfig

                kwargs["parallelism_config"] = ParallelismConfig(**kwargs["parallelism_config"])
            return TrainingArguments(**training_fields(kwargs))
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"training arguments: {error}") from error

    def command_line(self) -> list[str]:
        """The words that `parse` turns into these arguments, in one canonical form, without the hub's secret token.

        Own arguments at their default are left out.
        """
        words = []
        for spec in job_specs():
            if (value := getattr(self.job, spec.name)) != spec.default:
                words += to_words(spec, value)
        for spec in trainer_specs():
            if spec.name in self.training_kwargs and spec.name != "hub_token":
                words += to_words(spec, self.training_kwargs[spec.name])
        return [*words, *(word for name in self.auto for word in (f"--{name}", "auto"))]


def help_page(commands: Mapping[str, str]) -> str:
    """The text of `--help`, wrapped to the terminal. `commands`: what each does, by name."""
    return build_parser(job_specs(), trainer_specs(), commands).format_help()


def parse(argv: Sequence[str]) -> Parsed:
    """Parse and check a command line (without the program's name).

    Raises ValueError, one line that names the argument and the mend, for anything that cannot work as given.
    """
    own, trainers, notes = read_words(argv, job_specs(), trainer_specs())
    name_task(own)
    if own.get("num_dev") == 0:
        own["num_dev"] = None
    auto = tuple(name for name in AUTO if "auto" in (own.get(name), trainers.get(name)))
    own, trainers = ({name: v for name, v in given.items() if name not in auto} for given in (own, trainers))
    job = JobArguments(**{**_of_method(own), **own})
    training_kwargs = {**OUR_DEFAULTS, **trainers}
    if job.trainer == "guided":
        job = dataclasses.replace(job, train_blocks=job.train_blocks or GUIDED_BLOCKS)
        training_kwargs.setdefault("learning_rate", 1.0)
    check(job, training_kwargs)
    check_auto(job, training_kwargs, auto)
    return Parsed(job, training_kwargs, tuple(notes), auto)


def _of_method(own: Mapping[str, Any]) -> dict[str, Any]:
    """What the method says of arguments that every method has."""
    method = get_method(own.get("zo_method", "mezo"))
    names = ("distribution", "samples", "sides", "split", "shaping", "eps")
    return {f"zo_{name}": getattr(method, name) for name in names}
