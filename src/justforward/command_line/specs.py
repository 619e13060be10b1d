"""A job's own arguments as command-line arguments."""

from __future__ import annotations

import dataclasses

from justforward.command_line.fields import GROUPS
from justforward.command_line.job import JobArguments
from justforward.command_line.trainer_fields import ArgumentSpec


def job_specs() -> tuple[ArgumentSpec, ...]:
    """The fields of `JobArguments` as command-line arguments."""
    return tuple(
        ArgumentSpec(
            name=field.name,
            annotation=str(field.type),
            default=field.default,
            help=field.metadata["help"],
            group=field.metadata["group"],
            choices=field.metadata["choices"],
            aliases=field.metadata["aliases"],
        )
        for field in sorted(dataclasses.fields(JobArguments), key=lambda field: GROUPS.index(field.metadata["group"]))
    )
