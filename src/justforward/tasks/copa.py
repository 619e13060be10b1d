"""COPA: which of two sentences is the cause, or the effect, of a premise?"""

from justforward.tasks.base import Task, register
from justforward.tasks.loading import Row

CONJUNCTIONS = {"cause": "because ", "effect": "so "}


def lower_first_word(text: str) -> str:
    """`text` with its first word in lower case unless that is "I": so "I'm", "Tom" and "NASA" lose their capitals."""
    first, space, rest = text.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


def conjunction(row: Row) -> str:
    """The word, and a space, between premise and option."""
    return CONJUNCTIONS[row["question"]]


register(
    Task(
        name="Copa",
        hub=("aps/super_glue", "copa"),
        fields={"premise": str, "choice1": str, "choice2": str, "question": tuple(CONJUNCTIONS), "label": (0, 1)},
        template=lambda row: f"{row['premise'].rstrip().removesuffix('.')} {conjunction(row)}",
        candidates=lambda row: (row["choice1"], row["choice2"]),
        correct=lambda row: row["choice2"] if row["label"] else row["choice1"],
        option=lambda row, choice: lower_first_word(choice),
        calibration=conjunction,
    )
)
