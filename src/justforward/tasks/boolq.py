"""BoolQ: a yes/no question about a passage."""

from justforward.tasks.base import Task, register
from justforward.tasks.loading import Row


def question(row: Row) -> str:
    """The question with a capital first letter, and a "?" unless it ends in one (a space after it counts)."""
    asked = row["question"]
    return asked[:1].upper() + asked[1:] + ("" if asked.endswith("?") else "?")


register(
    Task(
        name="BoolQ",
        hub=("google/boolq", None),
        fields={"passage": str, "question": str, "answer": bool},
        template=lambda row: f"{row['passage']} {question(row)}\n",
        words={"Yes": "Yes", "No": "No"},
        correct=lambda row: "Yes" if row["answer"] else "No",
    )
)
