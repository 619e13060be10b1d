"""How many generated cases a test tries: few and always the same, or as many more and others as CASES asks for."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MORE = int(os.environ.get("CASES", "1"))
"""CASES=20 make test: twenty times as many, drawn anew."""


def cases(count: int) -> settings:
    """The settings of a test of so many cases, the same in every run and on every machine."""
    skipped = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much]
    return settings(
        max_examples=count * MORE, derandomize=MORE == 1, database=None, deadline=None, suppress_health_check=skipped
    )
