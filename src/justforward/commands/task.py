"""`justforward task list` and `justforward task check`: which tasks there are, and what one makes of its rows."""

from __future__ import annotations

import argparse
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justforward.command_line.parser import Parser
from justforward.tasks import TASKS, Sample, Splits, Task, as_conversations, find_task, names
from justforward.tasks.metrics import METRICS, Prediction
from justforward.tasks.sampling import train_sets

if TYPE_CHECKING:
    from justforward.scoring.prompts import PromptEncoder

MOST_SHOWN = 10
"""So many options, or different answers, are listed; the others are counted."""
_UNCUT = 2**40
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


def task_command(words: list[str]) -> None:
    """`justforward task list`, `justforward task check TASK`. Raises ValueError for what is wrong with the task."""
    given = parse(words)
    if given.what == "list":
        print("\n".join(listing()))
        return
    task = find_task(given.task, given.task if given.task.endswith((".toml", ".py")) else None)
    task = as_conversations(task, chat=given.chat_template, system=given.system_prompt)
    splits = task.load(given.data_dir)
    print("\n".join(describe(task, splits, given.num)))
    if given.model_name is not None:
        tokens = _measure(task, splits, given)
        if task.chat:
            print("\n".join(_rendered(tokens.encoder, splits, given.num)))
        print("\n".join(tokens.lines()))
        if tokens.problems:
            found = f"{len(tokens.problems)} kinds of problems" if len(tokens.problems) > 1 else "a problem"
            raise ValueError(f"{task.name}: {found} with the tokens of {given.model_name}, as listed above")


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments of `justforward task`. Raises ValueError for what it does not take."""
    parser = Parser(prog="justforward task", description="The tasks, and what one makes of its rows.")
    commands = parser.add_subparsers(dest="what", required=True, metavar="list|check")
    commands.add_parser("list", help="list the tasks that --task_name takes")
    check = commands.add_parser("check", help="show prompts, answers and sizes of a task")
    check.add_argument("task", help="a task file (.toml, .py), or the name of a task, as --task_name takes it")
    check.add_argument("--data_dir", help="the folder of the rows, as for a run")
    check.add_argument("--num", type=int, default=3, help="prompts to show (default: 3)")
    check.add_argument("--model_name", help="count tokens with this model's tokenizer; no weights are read")
    check.add_argument("--num_train", type=int, default=0, help="count with so many demonstrations (default: 0)")
    check.add_argument("--max_length", type=int, default=2048, help="longest input in tokens (default: 2048)")
    check.add_argument("--max_new_tokens", type=int, default=50, help="room for a generated answer (default: 50)")
    check.add_argument("--eos_token", default="\n", help="text that ends a generated answer, as for a run")
    check.add_argument("--bos_token_id", type=int, help="token before every prompt, as for a run")
    check.add_argument("--chat_template", action="store_true", help="as conversations, as for a run")
    check.add_argument("--system_prompt", help="what they begin with, as for a run")
    check.add_argument("--trust_remote_code", action="store_true", help="as for a run")
    try:
        given = parser.parse_args(words)
    except ValueError as error:
        raise ValueError(f"{parser.prog}: {error}") from None
    for name in ("num", "num_train") if given.what == "check" else ():
        if getattr(given, name) < 0:
            raise ValueError(f"argument --{name}: must be at least 0, got {getattr(given, name)}")
    return given


def listing() -> Iterator[str]:
    """A line for each task: its name, what is answered and how it is measured, and where its rows come from."""
    width = max(map(len, names()))
    for name in names():
        task = TASKS.get(name)
        if isinstance(task, Task):
            hub = "/".join(part for part in task.hub or () if part)
            yield f"{name:{width}}  {_kind(task):15}  {task.metric:8}  {hub}".rstrip()
        else:
            yield f"{name:{width}}  {name}__SUBTASK picks one of several tasks"


def describe(task: Task, splits: Splits, num: int) -> Iterator[str]:
    """What does not depend on a model: kind, sizes, the first prompts, the balance of the right answers."""
    metrics = [task.metric] if task.harness is None else task.harness.metrics
    yield f"{task.name}: {_kind(task)}, metric {', '.join(metrics)}"
    yield f"{len(splits.train)} rows for training, {len(splits.validation)} for validation"
    if task.rows is not None and task.harness is None:
        yield from _several_lines(splits)
    for sample in splits.train[:num]:
        yield from _whole(task, sample) if task.is_whole else _show(task, sample)
    if task.is_whole:
        return
    if splits.train:
        yield ""
        yield from _balance(task, splits)


def _several_lines(splits: Splits) -> Iterator[str]:
    """How many fields hold line breaks: it shows what a quotation mark too many has taken into a cell of a table."""
    halves = {"training": splits.train, "validation": splits.validation}
    counts = {name: [_lines(sample) for sample in half] for name, half in halves.items()}
    rows = ((max(found), name, i) for name, half in counts.items() for i, found in enumerate(half))
    longest, name, row = max(rows, key=lambda entry: entry[0])
    if longest > 1:
        cells = {name: sum(lines > 1 for found in half for lines in found) for name, half in counts.items()}
        yield (
            f"fields of several lines: {cells['training']} in training, {cells['validation']} in validation; the "
            f"longest has {longest} lines, in {name} row {row}"
        )


def _lines(sample: Sample) -> list[int]:
    """How many lines each text of a row has."""
    texts = (value for value in sample.data.values() if isinstance(value, str))
    return [1 + len(_LINE_BREAK.findall(text.strip("\r\n"))) for text in texts] or [1]


def _kind(task: Task) -> str:
    if task.is_whole:
        return "conversations" if task.chat else "texts"
    return "generation" if task.generation else "multiple choice" if task.candidates else "classification"


def _show(task: Task, sample: Sample) -> Iterator[str]:
    prompt = task.prompt(sample)
    yield f"\ntraining row {sample.id}"
    yield from (f"  | {line}" for line in prompt.split("\n"))
    answers = sample.correct if sample.candidates is None else sample.candidates
    right = _accepted(sample.correct)
    for answer in answers[:MOST_SHOWN]:
        yield f"  {'*' if answer in right else ' '} {task.verbalize(sample, answer)[len(prompt) :]!r}"
    if len(answers) > MOST_SHOWN:
        yield f"    and {len(answers) - MOST_SHOWN} more"


def _whole(task: Task, sample: Sample) -> Iterator[str]:
    """A text, or the turns of a conversation; a star is before what is learned."""
    yield f"\ntraining row {sample.id}"
    if task.text is not None:
        yield from (f"  | {line}" for line in task.text(sample.data).split("\n"))
    for turn in task.turns(sample.data) if task.turns is not None else []:
        learned = task.all_turns or turn["role"] == "assistant"
        yield f"  {'*' if learned else ' '} {turn['role']}: {turn['content']!r}"


def _balance(task: Task, splits: Splits) -> Iterator[str]:
    """How often each answer is the right one, and what always giving training's most frequent one would score."""
    halves = [splits.train, splits.validation]
    counts = [Counter(_answer(task, sample) for sample in half) for half in halves]
    listed = [answer for answer, _ in counts[0].most_common()]
    listed += [answer for answer in counts[1] if answer not in counts[0]]
    yield f"{'right answer':24} {'training':>16} {'validation':>16}"
    for answer in listed[:MOST_SHOWN]:
        cells = [f"{count[answer]} {_percent(count[answer] / count.total())}" for count in counts]
        yield f"{_short(answer):24} {cells[0]:>16} {cells[1]:>16}"
    if len(listed) > MOST_SHOWN:
        yield f"and {len(listed) - MOST_SHOWN} others"
    metric = METRICS.get("em" if task.generation else "accuracy")
    scores = [metric([_always(task, sample, listed[0]) for sample in half]) for half in halves]
    yield f"{_short(f'always {listed[0]}'):24} {_percent(scores[0]):>16} {_percent(scores[1]):>16}"


def _answer(task: Task, sample: Sample) -> Any:
    """What stands for a right answer: the label, the number of the choice, or the text."""
    if task.generation or not task.candidates:
        return task.gold(sample)
    right = _accepted(task.target(sample))
    return f"choice {right[0]}" if right else "none of the choices"


def _always(task: Task, sample: Sample, answer: Any) -> Prediction:
    """The prediction of whoever gives this answer to every sample."""
    target = task.target(sample)
    if task.generation:
        return Prediction(answer, target)
    if not task.candidates:
        return Prediction((sample.candidates or ()).index(answer), target)
    return Prediction(int(answer.split()[1]) if answer.startswith("choice") else None, target)


@dataclass
class Tokens:
    """Token counts of rows under one tokenizer.

    problems: what is wrong -> in how many rows; shots: demonstrations; note: on the task.
    """

    model: str
    encoder: PromptEncoder
    limit: int
    shots: int
    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    too_long: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    note: str | None = None

    def add(self, sample: Sample, demonstrations: Sequence[Sample]) -> None:
        """Count one row; what cannot be encoded is a problem."""
        try:
            if self.encoder.task.is_whole:
                rows = self.encoder.whole(sample)
                scored = [len(row.tokens) - row.start for row in rows]
                self._count(rows[0].start, scored, max(len(row.tokens) for row in rows))
            elif sample.candidates is None:
                self._generation(sample, demonstrations)
            else:
                self._choice(sample, sample.candidates, demonstrations)
        except ValueError as error:
            self.problems.update(list(self._failing(sample)) or [_reason(error)])

    def _generation(self, sample: Sample, demonstrations: Sequence[Sample]) -> None:
        prompt, gold = self.encoder.generation(sample, demonstrations), self.encoder.gold(sample)
        self._count(len(prompt), [len(gold.tokens) - gold.start], len(prompt))

    def _choice(self, sample: Sample, candidates: tuple[Any, ...], demonstrations: Sequence[Sample]) -> None:
        rows = self.encoder.candidates(sample, demonstrations)
        options = [len(row.tokens) - row.start for row in rows]
        self._count(rows[0].start, options, max(len(row.tokens) for row in rows))
        if max(options) + len(self.encoder.first) >= self.limit:
            self.problems[f"an answer leaves nothing of its prompt in {self.limit} tokens: raise --max_length"] += 1
        seen: dict[tuple[int, ...], Any] = {}
        for candidate, row in zip(candidates, rows, strict=True):
            other = seen.setdefault(row.tokens, candidate)
            if other != candidate:
                self.problems[f"the options {other!r} and {candidate!r} have the same tokens"] += 1

    def _count(self, prompt: int, answers: Sequence[int], longest: int) -> None:
        self.prompts.append(prompt)
        self.answers += answers
        self.too_long += longest > self.limit

    def _failing(self, sample: Sample) -> Iterator[str]:
        """Which answers cannot be scored, and why."""
        for answer in (sample.correct or ()) if sample.candidates is None else sample.candidates:
            try:
                self.encoder.candidates(replace(sample, candidates=(answer,)))
            except ValueError as error:
                yield f"{answer!r}: {_reason(error)}"

    def lines(self) -> Iterator[str]:
        """The report."""
        yield f"\n{_short(f'tokens, {Path(self.model).name}'):24} {'min':>7} {'median':>8} {'max':>7}"
        for name, counts in (("prompt", self.prompts), ("answers", self.answers)):
            if counts:
                yield f"{name:24} {min(counts):>7} {statistics.median(counts):>8g} {max(counts):>7}"
        rows = f"{self.too_long} of {len(self.prompts)} rows are longer than {self.limit} tokens"
        shots = "with no demonstrations: --num_train counts them too"
        counted = f"for validation, with {self.shots} demonstrations" if self.shots else shots
        if self.encoder.task.is_whole:
            yield f"{rows} and {'become several' if self.encoder.task.splits_long else 'lose their end'}"
        else:
            yield f"{rows} and lose some on the left ({counted})"
        if self.encoder.first:
            names = self.encoder.tokenizer.convert_ids_to_tokens(self.encoder.first)
            yield f"every row begins with {' '.join(map(repr, names))}"
        yield from self.encoder.remarks.lines()
        for problem, count in self.problems.most_common(MOST_SHOWN):
            yield f"problem in {count} rows: {problem}"
        if self.note is not None:
            yield f"note: {self.note}"


def _measure(task: Task, splits: Splits, given: argparse.Namespace) -> Tokens:
    from justforward.models.loading import embedding_rows, load_tokenizer
    from justforward.scoring.chat import encoder_of
    from justforward.scoring.stopping import unwritable

    common = {"trust_remote_code": given.trust_remote_code}
    tokenizer, bos, max_length = load_tokenizer(
        given.model_name, max_length=given.max_length, bos_token_id=given.bos_token_id, **common
    )
    rows = embedding_rows(given.model_name, **common)
    new_tokens = given.max_new_tokens if task.harness is None else task.harness.most_tokens
    settings = {"max_new_tokens": new_tokens, "bos_token_id": bos, "embedding_rows": rows}
    limit = encoder_of(tokenizer, task, max_length=max_length, **settings).max_length
    encoder = encoder_of(tokenizer, task, max_length=_UNCUT, **settings)
    note = unwritable(tokenizer, given.eos_token) if task.generation and task.harness is None else None
    tokens = Tokens(given.model_name, encoder, limit, given.num_train, note=note)
    for sample, demonstrations in _rows(splits, given.num_train):
        tokens.add(sample, demonstrations)
    return tokens


def _rendered(encoder: PromptEncoder, splits: Splits, num: int) -> Iterator[str]:
    """The first rows as the model reads them, with the right answer; and which of their tokens are control tokens."""
    tokenizer, control = encoder.tokenizer, set(encoder.tokenize.control_tokens().values())
    for sample in splits.train[:num]:
        rows = encoder.whole(sample) if encoder.task.is_whole else [encoder.gold(sample)]
        for row in rows:
            yield f"\ntraining row {sample.id} as a conversation; what is scored stands behind >>>"
            text = tokenizer.decode(row.tokens[: row.start]) + ">>>" + tokenizer.decode(row.tokens[row.start :])
            yield from (f"  | {line}" for line in text.split("\n"))
        row = max(rows, key=lambda row: len(row.tokens))
        counts = Counter(tokenizer.convert_ids_to_tokens([token for token in row.tokens if token in control]))
        yield "  control tokens: " + (", ".join(f"{name} x {n}" for name, n in counts.items()) or "none")


def _rows(splits: Splits, shots: int) -> Iterator[tuple[Sample, list[Sample]]]:
    """All rows, or with demonstrations those for validation, each behind its own as in a run."""
    if not shots:
        yield from ((sample, []) for sample in (*splits.train, *splits.validation))
        return
    sets = train_sets(
        len(splits.train),
        num_train=shots,
        num_dev=None,
        num_train_sets=None,
        train_set_seed=None,
        num_eval_samples=len(splits.validation),
    )
    for sample, drawn in zip(splits.validation, sets, strict=True):
        yield sample, [splits.train[i] for i in drawn.train]


def _reason(error: ValueError) -> str:
    """What is wrong, whatever the row."""
    return str(error).partition(" (row ")[0]


def _accepted(correct: Any) -> tuple[Any, ...]:
    return correct if isinstance(correct, tuple) else (correct,)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode() if "\n" in text else text
    return text if len(text) <= 24 else text[:21] + "..."
