"""F1 and exact match of the original program, its odd cases included."""

import json
from pathlib import Path

import pytest

from justforward.tasks.metrics import METRICS, Prediction, exact_match, f1

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
FACTS = json.loads((GOLDEN / "metrics.json").read_text(encoding="utf-8"))["f1_em"]


@pytest.mark.parametrize("fact", FACTS, ids=[f"{fact['pred']!r}-{fact['gold']!r}" for fact in FACTS])
def test_f1_and_exact_match(fact):
    assert f1(fact["pred"], fact["gold"]) == fact["f1"]
    assert exact_match(fact["pred"], fact["gold"]) == fact["em"]
    assert METRICS.get("f1")([Prediction(fact["pred"], tuple(fact["gold"]))]) == fact["metric_f1"]
