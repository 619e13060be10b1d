"""What a task is: how a row becomes a prompt, its options and its right answer.

A task is data: the fields that its rows must have, a template for the prompt, and a text for each option. What follows
from these (full texts, calibration, gold answers, loading) is written once, here. Prompts are those of the published
numbers to the character, odd capitals and spaces included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from justforward.registry import Registry
from justforward.tasks.harness import Harness, Made
from justforward.tasks.loading import Hub, Row, load_rows


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One row, read as a question: `candidates` are what can be answered, `correct` is what should be."""

    id: int | str | None
    """The row's index in its split."""
    data: Row
    candidates: tuple[Any, ...] | None
    """None for a generation task: its answer is any text."""
    correct: Any
    """One of `candidates`, or a tuple of all accepted answers (the first is the one to train on)."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The two labelled splits of a task, in the order of their rows."""

    train: Sequence[Sample]
    validation: Sequence[Sample]


@dataclass(frozen=True, kw_only=True)
class Task:
    """A declaration of one task; `register` puts it into the table under its name.

    The text of sample and candidate is `template(row) + option(row, candidate)`; with calibration (surface-form
    competition) it is `calibration(row) + option(row, candidate)`.
    """

    name: str
    hub: Hub | None = None
    """Where the rows are without a data_dir; None: nowhere."""
    rows: Callable[[], tuple[Sequence[Row], Sequence[Row]]] | None = None
    """Gives the checked rows for training and validation, of a task that knows where its own are."""
    fields: Mapping[str, Any]
    """What every row must have: see `loading.check_row`."""
    template: Callable[[Row], str]
    words: Mapping[Any, str] = field(default_factory=dict)
    """Options that are the same for every row: candidate -> text."""
    candidates: Callable[[Row], tuple[Any, ...]] | None = None
    """Options that differ by row; None: the keys of `words`."""
    correct: Callable[[Row], Any] = lambda row: row["label"]
    option: Callable[[Row, Any], str] | None = None
    """Text of an option; None: looked up in `words`."""
    calibration: Callable[[Row], str] = lambda row: ""
    generation: bool = False
    metric: str = "accuracy"
    separator: str = "\n\n"
    """Stands between demonstrations."""
    markup: bool = False
    """Whether a control token ("</s>") that a row spells counts as that token; it stays text unless told so."""
    chat: bool = False
    """Whether prompts are turns of a conversation, by the tokenizer's chat template."""
    system: str | None = None
    """What the conversation begins with; None: what the template itself says."""

    text: Callable[[Row], str] | None = None
    """Of a task whose rows are learned whole: the text."""
    turns: Callable[[Row], list[dict[str, str]]] | None = None
    """Or the turns of a conversation, {"role", "content"} each."""
    all_turns: bool = False
    """Whether all tokens of a conversation are learned, and not the assistant's turns alone."""
    splits_long: bool = False
    """Whether a text that is too long is learned in pieces; its end is cut off otherwise."""

    harness: Harness | None = None
    """Of a task of another evaluation harness: its texts to the character, and its metrics."""

    @property
    def is_whole(self) -> bool:
        """Whether rows are learned as they are: there is no question and no answer."""
        return self.text is not None or self.turns is not None

    @property
    def generates(self) -> bool:
        """Whether an evaluation generates answers: a whole conversation's last one, where a metric is to judge it."""
        return self.generation or (self.turns is not None and self.metric != "perplexity")

    def sample(self, row: Row, index: int) -> Sample:
        """The checked `row` number `index` (from 0) as a sample."""
        if self.is_whole:
            return Sample(id=index, data=row, candidates=None, correct=None)
        candidates = self.candidates(row) if self.candidates else tuple(self.words)
        return Sample(
            id=index,
            data=row,
            candidates=None if self.generation else candidates,
            correct=self.correct(row),
        )

    def prompt(self, sample: Sample) -> str:
        """The text before the option."""
        return self.template(sample.data)

    def verbalize(self, sample: Sample, candidate: Any) -> str:
        """The prompt followed by the text of `candidate` (for a generation task: any answer text)."""
        return self.template(sample.data) + self._option(sample, candidate)

    def prompt_sfc(self, sample: Sample) -> str:
        """The prompt without the question, for calibration. Raises ValueError for a generation task."""
        return self._calibration(sample).rstrip()

    def verbalize_sfc(self, sample: Sample, candidate: Any) -> str:
        """`candidate` without the question, for calibration. Raises ValueError for a generation task."""
        return self._calibration(sample) + self._option(sample, candidate)

    def gold(self, sample: Sample) -> Any:
        """The answer that demonstrations and training show: the right candidate, or the first accepted answer."""
        return sample.correct[0] if isinstance(sample.correct, tuple) else sample.correct

    def gold_index(self, sample: Sample) -> int:
        """Index of `gold` among the candidates, for training as classification.

        Raises ValueError where there is none: a generation task, or accepted answers that are no candidates.
        """
        if sample.candidates is None:
            raise ValueError(f"{self.name} has no fixed options to classify: leave train_as_classification off")
        gold = self.gold(sample)
        if gold not in sample.candidates:
            raise ValueError(
                f"{self.name} sample {sample.id}: the right answer {gold!r} is not among the options, "
                "so it cannot train as classification: mend or remove the row, or leave train_as_classification off"
            )
        return sample.candidates.index(gold)

    def target(self, sample: Sample) -> Any:
        """What a prediction is held against (`metrics.Prediction.correct`).

        The index of the right candidate; a tuple with the indices of all accepted candidates (empty: nothing that can
        be predicted is right); or, for a generation task, the accepted texts.
        """
        if sample.candidates is None:
            return sample.correct
        if isinstance(sample.correct, tuple):
            return tuple(i for i, candidate in enumerate(sample.candidates) if candidate in sample.correct)
        return sample.candidates.index(sample.correct)

    def load(self, data_dir: str | None) -> Splits:
        """Both splits, from `data_dir`/NAME/{train,validation}.jsonl or, without it, from where the task says.

        Raises ValueError for a missing file, a damaged row, or a hub that cannot be reached.
        """
        if self.rows is not None and data_dir is not None:
            raise ValueError(f"--data_dir {data_dir}: {self.name} says itself where its rows are: leave --data_dir out")
        rows = self.rows() if self.rows else load_rows(self.name, self.hub, self.fields, data_dir)
        train, validation = map(self._samples, rows)
        return Splits(train=train, validation=validation)

    def _samples(self, rows: Sequence[Row]) -> Sequence[Sample]:
        if self.harness is not None:
            return Made(len(rows), lambda i: self.sample(rows[i], i))
        return [self.sample(row, i) for i, row in enumerate(rows)]

    def _option(self, sample: Sample, candidate: Any) -> str:
        return self.option(sample.data, candidate) if self.option else self.words[candidate]

    def _calibration(self, sample: Sample) -> str:
        if self.generation:
            raise ValueError(f"{self.name} generates its answers, there are no options to calibrate: leave sfc off")
        return self.calibration(sample.data)


def as_conversations(task: Task, *, chat: bool, system: str | None) -> Task:
    """The task, and what a command says of the chat template.

    Raises ValueError for a system text without a template, and for a task whose texts are a harness's.
    """
    if chat and task.harness is not None:
        raise ValueError(f"--chat_template: {task.name} is asked as its harness asks it, in plain text: leave it out")
    if system is not None and not (chat or task.chat):
        raise ValueError(
            "--system_prompt is what a conversation begins with: give --chat_template with it, or leave it out"
        )
    return replace(task, chat=task.chat or chat, system=task.system if system is None else system)


TASKS: Registry[Task | Callable[[str | None], Task]] = Registry(
    "task", package="justforward.tasks", entry_points="justforward.tasks"
)


def register(task: Task) -> Task:
    """Put `task` into the table under its own name."""
    TASKS.register(task.name)(task)
    return task
