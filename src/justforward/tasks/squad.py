"""SQuAD: write the answer to a question about a passage."""

from justforward.tasks.base import Task, register

register(
    Task(
        name="SQuAD",
        hub=("rajpurkar/squad", None),
        fields={"title": str, "context": str, "question": str, "answers": {"text": [str]}},
        template=lambda row: (
            f"Title: {row['title']}\nContext: {row['context']}\nQuestion: {row['question'].strip()}\nAnswer:"
        ),
        correct=lambda row: tuple(row["answers"]["text"]),
        option=lambda row, answer: f" {answer}\n",
        generation=True,
        metric="f1",
    )
)
