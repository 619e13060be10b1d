"""RTE: does the premise entail the hypothesis?"""

from justforward.tasks.base import Task, register

WORDS = {0: "Yes", 1: "No"}

register(
    Task(
        name="RTE",
        hub=("aps/super_glue", "rte"),
        fields={"premise": str, "hypothesis": str, "label": tuple(WORDS)},
        template=lambda row: f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true? Yes or No?\n',
        words=WORDS,
    )
)
