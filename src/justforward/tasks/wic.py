"""Words in Context: is a word used in the same sense in two sentences?"""

from justforward.tasks.base import Task, register

WORDS = {0: "No", 1: "Yes"}

register(
    Task(
        name="WIC",
        hub=("aps/super_glue", "wic"),
        fields={"word": str, "sentence1": str, "sentence2": str, "label": tuple(WORDS)},
        template=lambda row: (
            f'Does the word "{row["word"]}" have the same meaning in these two sentences? Yes, No?\n'
            f"{row['sentence1']}\n{row['sentence2']}\n"
        ),
        words=WORDS,
    )
)
