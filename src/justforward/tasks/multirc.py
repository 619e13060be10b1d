"""MultiRC: is a given answer to a question about a paragraph right? (Each answer is a row of its own.)"""

from justforward.tasks.base import Task, register

WORDS = {0: "No", 1: "Yes"}

register(
    Task(
        name="MultiRC",
        hub=("aps/super_glue", "multirc"),
        fields={"paragraph": str, "question": str, "answer": str, "label": tuple(WORDS)},
        template=lambda row: (
            f"{row['paragraph']}\nQuestion: {row['question']}\n"
            f'I found this answer "{row["answer"]}". Is that correct? Yes or No?\n'
        ),
        words=WORDS,
    )
)
