"""The Winograd Schema Challenge: does a pronoun refer to a given noun?"""

from justforward.tasks.base import Task, register

WORDS = {0: "No", 1: "Yes"}

register(
    Task(
        name="WSC",
        hub=("aps/super_glue", "wsc.fixed"),
        fields={"text": str, "span1_text": str, "span2_text": str, "label": tuple(WORDS)},
        template=lambda row: (
            f"{row['text']}\nIn the previous sentence, does the pronoun "
            f'"{row["span2_text"].lower()}" refer to {row["span1_text"]}? Yes or No?\n'
        ),
        words=WORDS,
    )
)
