"""What was proposed for a job lies in its output folder, and is used again when the job is resumed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from justforward.auto.measure import Proposal
from justforward.optim.distribution.ranks import gathered

logger = logging.getLogger(__name__)

FILE_NAME = "justforward_auto.json"
"""In the output folder: {"job": what it was measured for, "values": by argument, "reasons", "measured"}."""


def settle(
    folder: Path, record: Mapping[str, Any], names: Sequence[str], measure: Callable[[], Proposal], *, anew: bool
) -> dict[str, Any]:
    """What FILE_NAME holds, or is to hold: as recorded for this job, else measured. The same on every rank.

    Args:
        folder: the job's output folder.
        record: the job (see resuming.job_record); the values of `names` in it do not count.
        names: the arguments that are "auto".
        measure: makes the proposal.
        anew: measure in any case.
    """
    job = {name: value for name, value in record.items() if name not in names}
    found = gathered(None if anew else _recorded(folder, job, names))
    recorded = next((entry for entry in found if entry is not None), None)  # a machine that joined late has none
    if recorded is not None:
        logger.info("%s, as measured before", ", ".join(f"--{n} {v:g}" for n, v in recorded["values"].items()))
        return recorded
    proposal = gathered(measure())[0]
    for reason in proposal.reasons():
        logger.info("%s", reason)
    return {"job": job, **proposal.to_json()}


def _recorded(folder: Path, job: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        same = found["job"] == job and set(found["values"]) == set(names)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if same else None
