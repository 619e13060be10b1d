"""A task of lm_eval as a `Task`: its texts, rows and metrics are those that lm_eval itself makes.

Multiple choice and generation are taken. docs/lm-eval.md says what equals lm_eval's own numbers.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from justforward.tasks.base import Task
from justforward.tasks.harness import Harness, Made
from justforward.tasks.lm_eval_names import PREFIX, NotTaken, find_in_lm_eval, one_line
from justforward.tasks.loading import Row
from justforward.tasks.texts import check_readable

KINDS = ("multiple_choice", "generate_until")
DEFAULT_TOKENS = 256
"""Of a generated answer, where its task names no number: lm_eval's own."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What a task may call that number; the first that is given counts."""
_PINNED = 16
"""Rows whose texts, and not their fields alone, tell a training from one on other texts."""
_GREEDY = {*_LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k"}


def read_lm_eval(name: str) -> Task:
    """The task that lm_eval has under this name; see `find_in_lm_eval` for what a name is.

    Raises ValueError, one line, for what cannot be found, and for tasks of a kind that is not taken.
    """
    source = find_in_lm_eval(name)
    _check(name, source)
    return Converted(name, source).task()


def _check(name: str, source: Any) -> None:
    """Raise ValueError for a task that is not taken."""
    if not isinstance(source, importlib.import_module("lm_eval.api.task").ConfigurableTask):
        raise ValueError(f"{PREFIX}{name} is written in Python, and tasks are taken that a task file declares")
    config, metrics = source.config, set(source.aggregation())
    kind, how = config.output_type, config.generation_kwargs or {}
    sampled = bool(how.get("do_sample", float(how.get("temperature") or 0) > 0))
    choice = kind == KINDS[0]
    needs_more = sorted({"acc_mutual_info", "exact_match"} & metrics) if choice else []
    unknown = sorted(set(how) - _GREEDY)
    rules = [
        (kind not in KINDS, f"has output_type {kind}, and tasks of {' and '.join(KINDS)} are taken"),
        (config.unsafe_code, "runs the code that a model writes (unsafe_code), which is not done here"),
        (bool(config.doc_to_image or config.doc_to_audio), "shows images or sounds, and models here read text"),
        (config.repeats > 1, f"answers every row {config.repeats} times (repeats), and one answer is taken here"),
        (needs_more != [], f"lists the metric {', '.join(needs_more)}, which needs more than scores of choices"),
        (not choice and sampled, "draws its answers at random (do_sample), which no other program repeats"),
        (not choice and unknown != [], f"generates with {', '.join(unknown)}, which is not taken"),
        (not choice and not _ends(how), "has no text in generation_kwargs.until, so that no answer would end"),
    ]
    for broken, what in rules:
        if broken:
            raise ValueError(f"{PREFIX}{name} {what}: take another task")


@dataclass(frozen=True)
class Converted:
    """What makes a `Task` of lm_eval's object; `name` is what the user calls it."""

    name: str
    source: Any

    @property
    def _choice(self) -> bool:
        return self.source.config.output_type == KINDS[0]

    def task(self) -> Task:
        """The task; a row is rendered when it is asked for."""
        config, how = self.source.config, self.source.config.generation_kwargs or {}
        return Task(
            name=f"{PREFIX}{config.task}",
            rows=self._rows,
            fields={},
            template=lambda row: row["description"] + ("" if len(row["contexts"]) > 1 else row["contexts"][0]),
            candidates=(lambda row: row["choices"]) if self._choice else None,
            correct=lambda row: row["right"],
            option=_option,
            generation=not self._choice,
            metric="accuracy" if self._choice else "em",
            separator=config.fewshot_delimiter,
            markup=True,
            harness=Harness(
                description=lambda row: row["description"],
                shown=lambda row: self._shown(row["doc"]),
                context=lambda row, candidate: row["contexts"][_place(row, candidate)],
                continuation=lambda row, candidate: _continuation(row, candidate),
                judge=self._judge,
                fingerprint=self._fingerprint,
                metrics=tuple(self.source.aggregation()),
                ends=_ends(how),
                most_tokens=int(next((how[key] for key in _LENGTHS if how.get(key) is not None), DEFAULT_TOKENS)),
            ),
        )

    @functools.cached_property
    def _docs(self) -> list[tuple[str, list[Any]]]:
        """lm_eval's rows by split: to train on or to show, where the task has any; last, what lm_eval evaluates."""
        source, config = self.source, self.source.config
        evaluated = config.test_split or config.validation_split
        spare = [split for split in (config.fewshot_split, config.validation_split) if split and split != evaluated]
        shown: dict[str, Any] = {}
        with one_line(self.name):
            if source.has_training_docs():
                shown = {config.training_split: source.training_docs()}
            elif spare:
                shown = {spare[0]: source.fewshot_docs() if config.fewshot_split in spare else source.validation_docs()}
            found = [*shown.items(), (evaluated, source.eval_docs)]
            docs = [(split, list(rows)) for split, rows in found]
            if not docs[-1][1]:
                raise NotTaken(f"there are no rows in its split '{evaluated}'")
        return docs

    def _rows(self) -> tuple[Sequence[Row], Sequence[Row]]:
        train, evaluated = [("", [])] * (2 - len(self._docs)) + self._docs
        return self._rendered(*train), self._rendered(*evaluated)

    def _rendered(self, split: str, docs: Sequence[Any]) -> Sequence[Row]:
        return Made(len(docs), lambda i: self._row(docs[i], f"{self.name}, split '{split}', row {i + 1}"))

    def _fingerprint(self) -> str:
        """All rows as they are, and the texts of the first: rendering all takes minutes."""
        rows, _ = self._rows()
        texts = [{key: value for key, value in row.items() if key != "doc"} for row in rows[:_PINNED]]
        docs = [doc for _, docs in self._docs[:-1] for doc in docs]
        said = json.dumps([docs, texts], default=str)
        return f"sha256:{hashlib.sha256(said.encode()).hexdigest()[:32]}"

    def _row(self, doc: Any, where: str) -> Row:
        """The texts of one row, as lm_eval would send them to a model without demonstrations."""
        source = self.source
        check_readable(doc, f"{PREFIX}{where}")
        with one_line(where):
            context = self._context(doc, 0)
            description = source.resolve_field(doc, source.config.description) or ""
            contexts = [text.removeprefix(description) for text in ([context] if isinstance(context, str) else context)]
            row = {"doc": doc, "description": description, "contexts": contexts}
            return {**row, **(self._choices(doc, context) if self._choice else self._answers(doc, contexts[0]))}

    def _context(self, doc: Any, num_fewshot: int) -> Any:
        return self.source.fewshot_context(doc, num_fewshot=num_fewshot, gen_prefix=self.source.doc_to_prefix(doc))

    def _requests(self, doc: Any, context: Any, index: int = 0) -> list[Any]:
        made = self.source.construct_requests(doc=doc, ctx=context, metadata=(self.name, index, 1))
        return made if isinstance(made, list) else [made]

    def _choices(self, doc: Any, context: Any) -> Row:
        continuations = [request.args[1] for request in self._requests(doc, context)]
        choices = tuple(self.source.doc_to_choice(doc))
        gold = self.source.doc_to_text(doc) if self.source.multiple_input else self.source.doc_to_target(doc)
        listed = isinstance(gold, list)
        right = tuple(_chosen(choices, one) for one in (gold if listed else [gold]))
        return {"choices": choices, "continuations": continuations, "right": right if listed else right[0]}

    def _answers(self, doc: Any, context: str) -> Row:
        config, gold = self.source.config, self.source.doc_to_target(doc)
        if config.doc_to_choice is not None:
            gold = self.source.doc_to_choice(doc)[gold]
        right = tuple(map(str, gold if isinstance(gold, list) else [gold]))
        if not right:
            raise NotTaken("it has no right answer")
        delimiter = config.target_delimiter if not context[-1:].isspace() or not config.gen_prefix else ""
        ends = _ends(config.generation_kwargs)
        return {"right": right, "answer": (delimiter, ends[0])}

    def _shown(self, doc: Any) -> str:
        """The row as lm_eval shows it before another one."""
        source = self.source
        source.sampler = _Given(doc)
        bare, behind = (self._context(doc, count) for count in (0, 1))
        if not isinstance(bare, str):
            bare, behind = bare[0], behind[0]
        description = source.resolve_field(doc, source.config.description) or ""
        return behind[len(description) : len(behind) - len(bare.removeprefix(description))]

    def _judge(self, rows: Sequence[Row], answers: Sequence[Any]) -> dict[str, float]:
        """lm_eval's metrics, through its filters; of a filter with a name as "METRIC,FILTER"."""
        source, groups = self.source, []
        # lm_eval's own process_results looks at it for exact_match, which `_check` refuses.
        greedy = _Unknown() if callable(source.config.process_results) else False
        with one_line(self.name):
            for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
                context = row["contexts"] if source.multiple_input else row["contexts"][0]
                requests = self._requests(row["doc"], context, i)
                responses = [(score, greedy) for score in answer] if self._choice else [answer]
                for request, response in zip(requests, responses, strict=True):
                    request.resps.append(response)
                groups.append(requests)
            source._instances = [request for requests in groups for request in requests]
            source.apply_filters()
            found: dict[tuple[str, str], list[Any]] = {}
            for key in groups[0][0].filtered_resps:
                for row, requests in zip(rows, groups, strict=True):
                    told = source.process_results(row["doc"], [request.filtered_resps[key] for request in requests])
                    for metric, value in told.items():
                        found.setdefault((metric, key), []).append(value)
            mean = importlib.import_module("lm_eval.api.metrics").mean
            means = {pair: source.aggregation().get(pair[0], mean)(values) for pair, values in found.items()}
        return {metric if key == "none" else f"{metric},{key}": float(value) for (metric, key), value in means.items()}


@dataclass(frozen=True)
class _Given:
    """In the place of lm_eval's sampler: draws this row."""

    doc: Any

    def sample(self, n: int, eval_doc: Any = None) -> list[Any]:
        return [self.doc] * n


class _Unknown:
    """Whether a choice is what the model would write itself: nothing computes it, and whoever asks is told."""

    def __bool__(self) -> bool:
        raise NotTaken("its process_results asks whether a choice is the greedy one, which is not computed here")

    __int__ = __bool__


def _ends(how: Mapping[str, Any]) -> tuple[str, ...]:
    until = how.get("until") or []
    return tuple(text for text in ([until] if isinstance(until, str) else until) if text)


def _chosen(choices: Sequence[str], gold: Any) -> str:
    """The right choice, by its place or its text. Raises NotTaken where it is none of them."""
    if isinstance(gold, int) and 0 <= gold < len(choices):
        return choices[gold]
    if isinstance(gold, str) and gold in choices:
        return gold
    raise NotTaken(f"its right answer {gold!r} is none of its {len(choices)} choices, nor the place of one")


def _place(row: Row, candidate: Any) -> int:
    return row["choices"].index(candidate) if len(row["contexts"]) > 1 else 0


def _continuation(row: Row, candidate: Any) -> str:
    if "choices" in row:
        return row["continuations"][row["choices"].index(candidate)]
    before, behind = row["answer"]
    return before + candidate + behind


def _option(row: Row, candidate: Any) -> str:
    """What `Task.template` lacks of context and continuation: contexts that differ by candidate stand here."""
    own = row["contexts"][_place(row, candidate)] if len(row["contexts"]) > 1 else ""
    return own + _continuation(row, candidate)
