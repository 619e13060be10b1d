"""ReCoRD: which entity of a news article fills the gap of a sentence about it?

The options are whole sentences, each with one entity in the gap, as a further bullet below the article's highlights.
Answers that are not among the row's entities cannot be predicted and are ignored. Where that leaves none, the row is
never counted right in an evaluation; it still serves as a demonstration and in language-model training, with the first
of its answers, and is an error in training as classification.
"""

from justforward.tasks.base import Task, register
from justforward.tasks.loading import Row


def accepted(row: Row) -> tuple[str, ...]:
    """The answers that are entities of the row; all answers where none is."""
    return tuple(answer for answer in row["answers"] if answer in row["entities"]) or tuple(row["answers"])


def bullets(row: Row) -> str:
    """The passage with its highlights as bullets (a marker that ends the passage stays as it is)."""
    return row["passage"].replace("@highlight\n", "- ")


register(
    Task(
        name="ReCoRD",
        hub=("aps/super_glue", "record"),
        fields={"passage": str, "query": str, "entities": [str], "answers": [str]},
        template=lambda row: f"{bullets(row)}\n-",
        candidates=lambda row: tuple(row["entities"]),
        correct=accepted,
        option=lambda row, entity: f" {row['query'].replace('@placeholder', entity)}",
        calibration=lambda row: "-",
    )
)
