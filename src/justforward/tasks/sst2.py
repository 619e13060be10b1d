"""SST-2: is a sentence of a film review negative or positive?"""

from justforward.tasks.base import Task, register

WORDS = {0: " terrible", 1: " great"}

register(
    Task(
        name="SST2",
        hub=("nyu-mll/glue", "sst2"),
        fields={"sentence": str, "label": tuple(WORDS)},
        template=lambda row: f"{row['sentence'].strip()} It was",
        words=WORDS,
        calibration=lambda row: " It was",
    )
)
