"""CommitmentBank: does the premise entail, contradict or leave open the hypothesis?"""

from justforward.tasks.base import Task, register

WORDS = {0: "Yes", 1: "No", 2: "Maybe"}

register(
    Task(
        name="CB",
        hub=("aps/super_glue", "cb"),
        fields={"premise": str, "hypothesis": str, "label": tuple(WORDS)},
        template=lambda row: f'Suppose {row["premise"]} Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?\n',
        words=WORDS,
    )
)
