"""`justforward task list` and `justforward task check`: which tasks there are, and what one makes of its rows."""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from justforward.command_line.parser import Parser
from justforward.tasks import TASKS, Sample, Splits, Task, find_task, names
from justforward.tasks.metrics import METRICS, Prediction

if TYPE_CHECKING:
    from justforward.scoring.prompts import PromptEncoder

MOST_SHOWN = 10
"""So many options, or different answers, are listed; the others are counted."""
_UNCUT = 2**40


def task_command(words: list[str]) -> None:
    """`justforward task list`, `justforward task check TASK`. Raises ValueError for what is wrong with the task."""
    given = parse(words)
    if given.what == "list":
        print("\n".join(listing()))
        return
    task = find_task(given.task, given.task if given.task.endswith((".toml", ".py")) else None)
    splits = task.load(given.data_dir)
    print("\n".join(describe(task, splits, given.num)))
    if given.model_name is not None:
        tokens = _measure(task, splits, given)
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
    check.add_argument("task", help="a task file (.toml, .py), or the name of a task")
    check.add_argument("--data_dir", help="the folder of the rows, as for a run")
    check.add_argument("--num", type=int, default=3, help="prompts to show (default: 3)")
    check.add_argument("--model_name", help="count tokens with this model's tokenizer; no weights are read")
    check.add_argument("--max_length", type=int, default=2048, help="longest input in tokens (default: 2048)")
    check.add_argument("--max_new_tokens", type=int, default=50, help="room for a generated answer (default: 50)")
    check.add_argument("--bos_token_id", type=int, help="token before every prompt, as for a run")
    check.add_argument("--trust_remote_code", action="store_true", help="as for a run")
    try:
        given = parser.parse_args(words)
    except ValueError as error:
        raise ValueError(f"{parser.prog}: {error}") from None
    if given.what == "check" and given.num < 0:
        raise ValueError(f"argument --num: must be at least 0, got {given.num}")
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
    yield f"{task.name}: {_kind(task)}, metric {task.metric}"
    yield f"{len(splits.train)} rows for training, {len(splits.validation)} for validation"
    for sample in splits.train[:num]:
        yield from _show(task, sample)
    yield ""
    yield from _balance(task, splits)


def _kind(task: Task) -> str:
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
    """Token counts of all rows under one tokenizer; problems: what is wrong -> in how many rows."""

    model: str
    limit: int
    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    too_long: int = 0
    problems: Counter[str] = field(default_factory=Counter)

    def add(self, prompt: int, answers: Sequence[int], longest: int) -> None:
        """Count one row."""
        self.prompts.append(prompt)
        self.answers += answers
        self.too_long += longest > self.limit

    def lines(self) -> Iterator[str]:
        """The report."""
        yield f"\n{_short(f'tokens, {Path(self.model).name}'):24} {'min':>7} {'median':>8} {'max':>7}"
        for name, counts in (("prompt", self.prompts), ("answers", self.answers)):
            if counts:
                yield f"{name:24} {min(counts):>7} {statistics.median(counts):>8g} {max(counts):>7}"
        rows = len(self.prompts)
        yield f"{self.too_long} of {rows} rows are longer than {self.limit} tokens and lose some on the left"
        for problem, count in self.problems.most_common(MOST_SHOWN):
            yield f"problem in {count} rows: {problem}"


def _measure(task: Task, splits: Splits, given: argparse.Namespace) -> Tokens:
    from justforward.models.loading import load_tokenizer
    from justforward.scoring.prompts import PromptEncoder

    tokenizer, bos, max_length = load_tokenizer(
        given.model_name,
        max_length=given.max_length,
        bos_token_id=given.bos_token_id,
        trust_remote_code=given.trust_remote_code,
    )
    settings = {"max_new_tokens": given.max_new_tokens, "bos_token_id": bos}
    limit = PromptEncoder(tokenizer, task, max_length=max_length, **settings).max_length
    encoder = PromptEncoder(tokenizer, task, max_length=_UNCUT, **settings)
    tokens = Tokens(given.model_name, limit)
    for sample in (*splits.train, *splits.validation):
        try:
            _count(encoder, sample, tokens)
        except ValueError:
            tokens.problems.update(_failing(encoder, sample))
    return tokens


def _failing(encoder: PromptEncoder, sample: Sample) -> Iterator[str]:
    """Which answers cannot be scored, and why."""
    for answer in sample.correct if sample.candidates is None else sample.candidates:
        alone = replace(sample, candidates=(answer,))
        try:
            encoder.candidates(alone)
        except ValueError as error:
            yield f"{answer!r}: {str(error).partition(':')[0]}"


def _count(encoder: PromptEncoder, sample: Sample, tokens: Tokens) -> None:
    if sample.candidates is None:
        prompt, gold = encoder.generation(sample), encoder.gold(sample)
        tokens.add(len(prompt), [len(gold.tokens) - gold.start], len(prompt))
        return
    rows = encoder.candidates(sample)
    tokens.add(rows[0].start, [len(row.tokens) - row.start for row in rows], max(len(row.tokens) for row in rows))
    seen: dict[tuple[int, ...], Any] = {}
    for candidate, row in zip(sample.candidates, rows, strict=True):
        other = seen.setdefault(row.tokens, candidate)
        if other != candidate:
            tokens.problems[f"the options {other!r} and {candidate!r} have the same tokens"] += 1


def _accepted(correct: Any) -> tuple[Any, ...]:
    return correct if isinstance(correct, tuple) else (correct,)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.encode("unicode_escape").decode() if "\n" in text else text
    return text if len(text) <= 24 else text[:21] + "..."
