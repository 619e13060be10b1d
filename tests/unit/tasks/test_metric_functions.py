import pytest

from justforward.tasks.metrics import METRICS, Prediction, accuracy, f1, mean_exact_match, mean_f1, normalize


def test_accuracy_counts_any_accepted_candidate():
    predictions = [Prediction(0, 0), Prediction(1, 0), Prediction(2, (1, 2)), Prediction(0, (1, 2)), Prediction(0, ())]
    assert accuracy(predictions) == pytest.approx(2 / 5)


def test_means_over_texts():
    predictions = [Prediction("a cat sat", ("cat sat down",)), Prediction("Dog.", ("cat", "the dog"))]
    assert mean_f1(predictions) == pytest.approx((0.8 + 1) / 2)
    assert mean_exact_match(predictions) == 0.5


def test_normalize_strips_punctuation_before_articles():
    assert normalize("  The U.S.\tand a-the an ") == "us and athe"


def test_f1_weighs_precision_and_recall():
    # Two of four predicted tokens are right, two of three gold tokens are found.
    assert f1("red blue green grey", ["red blue black"]) == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


@pytest.mark.parametrize("name", METRICS.names())
def test_nothing_to_score(name):
    with pytest.raises(ValueError, match="no predictions to score"):
        METRICS.get(name)([])


def test_registry_names():
    assert METRICS.names() == ["accuracy", "em", "f1"]
