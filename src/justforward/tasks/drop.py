"""DROP: write the answer to a question that needs reasoning over the numbers and names of a passage.

An answer of several spans is read as several accepted answers, of which the first is shown.
"""

from justforward.tasks.base import Task, register

register(
    Task(
        name="DROP",
        hub=("ucinlp/drop", None),
        fields={"passage": str, "question": str, "answers_spans": {"spans": [str]}},
        template=lambda row: f"Passage: {row['passage']}\nQuestion: {row['question'].strip()}\nAnswer:",
        correct=lambda row: tuple(row["answers_spans"]["spans"]),
        option=lambda row, answer: f" {answer}\n",
        generation=True,
        metric="f1",
    )
)
