"""Rewards from outside: a program, or an HTTP endpoint, asked for a batch at a time and never twice for one text."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shlex
import shutil
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from justforward.results.files import append_lines
from justforward.tasks.base import Sample, Task

logger = logging.getLogger(__name__)

REWARDS_FILE = "rewards.jsonl"
"""In the output folder: what was answered, one line for each text."""

COMMAND, WEB = "command:", ("http://", "https://")

Ask = Callable[[Sequence[str], float], list[float]]
"""(requests as JSON, seconds) -> their rewards. Raises JudgeError, and Unanswered where asking again may help."""


class JudgeError(ValueError):
    """What came in place of rewards; the message begins with the argument that names the judge."""


class Unanswered(JudgeError):
    """No answer this time."""


def is_judge(name: str) -> bool:
    """Whether the name of a reward is that of a program or an endpoint."""
    return name.startswith((COMMAND, *WEB))


class Judge:
    """A reward by a program or an endpoint.

    Args:
        name: "command:PROGRAM WORDS", which is started without a shell, or the URL of an endpoint.
        task: of the samples.
        cache: file of what was answered before; None: remembered while this lives.
        timeout: seconds for the answers to a batch.
        retries: times that it is asked again where it did not answer.

    Raises JudgeError for a command that cannot be read.
    """

    def __init__(self, name: str, task: Task, *, cache: Path | None = None, timeout: float = 60.0, retries: int = 2):
        self.name, self.task, self.cache, self.timeout, self.retries = name, task, cache, timeout, retries
        self.ask: Ask = Program(name) if name.startswith(COMMAND) else Endpoint(name)
        self.pause = 1.0
        """Seconds before it is asked again, doubled each time."""
        identity = self.ask.digest if isinstance(self.ask, Program) else name
        self._identity = f"{task.name}\0{identity}\0"
        self._known: dict[str, float] | None = None

    def __call__(self, samples: Sequence[Sample], outputs: Sequence[Any]) -> list[float]:
        """One reward per output; those that were given before are not asked for again."""
        if self._known is None:
            self._known = {} if self.cache is None else dict(_lines(self.cache))
        requests = [request(self.task, sample, output) for sample, output in zip(samples, outputs, strict=True)]
        keys = [hashlib.sha256((self._identity + text).encode()).hexdigest()[:32] for text in requests]
        missing = {key: text for key, text in zip(keys, requests, strict=True) if key not in self._known}
        if missing:
            self._remember(dict(zip(missing, self._answers(list(missing.values())), strict=True)))
        return [self._known[key] for key in keys]

    def _answers(self, requests: Sequence[str]) -> list[float]:
        for left in reversed(range(self.retries + 1)):
            try:
                return self.ask(requests, self.timeout)
            except Unanswered as error:
                if left == 0:
                    raise
                logger.warning("%s: asked again", error)
                time.sleep(self.pause * 2 ** (self.retries - left))
        raise AssertionError

    def _remember(self, rewards: Mapping[str, float]) -> None:
        assert self._known is not None
        self._known.update(rewards)
        if self.cache is not None:
            lines = [[key, reward] for key, reward in rewards.items() if math.isfinite(reward)]
            append_lines(self.cache, [json.dumps([*line, _checksum(line)]) for line in lines])


class Program:
    """Started for every batch: JSON lines in, a number for each out."""

    def __init__(self, name: str):
        try:
            self.words = shlex.split(name.removeprefix(COMMAND))
        except ValueError as error:
            raise JudgeError(f"--reward {name}: {error}") from None
        if not self.words:
            raise JudgeError(f"--reward {name}: names no program: give command:PROGRAM, and its words")
        if shutil.which(self.words[0]) is None:
            raise JudgeError(f"--reward {name}: there is no program {self.words[0]} here: give its path")
        self.name = name
        # An edited program is another judge.
        files = [Path(word) for word in self.words if Path(word).is_file()]
        self.digest = name + "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)

    def __call__(self, requests: Sequence[str], timeout: float) -> list[float]:
        """See Ask."""
        told = f"--reward {self.name}: "
        try:
            done = subprocess.run(
                self.words,
                input="\n".join(requests) + "\n",
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unanswered(
                f"{told}no answer to {len(requests)} requests in {timeout:g} s (--reward_timeout)"
            ) from None
        except (OSError, UnicodeError) as error:
            raise JudgeError(f"{told}{getattr(error, 'strerror', None) or error}") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it says nothing of why"])[-1]
            raise Unanswered(f"{told}ended with exit status {done.returncode}: {last[:300]}")
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        try:
            answers = [json.loads(line) for line in lines]
        except ValueError:
            wrong = next(line for line in lines if not _is_json(line))
            raise JudgeError(f"{told}a line of its output is no JSON number: {wrong[:100]!r}") from None
        return _numbers(told, answers, len(requests))


class Endpoint:
    """Gets {"requests": [...]} by POST, and answers {"rewards": [...]} or the list alone."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, requests: Sequence[str], timeout: float) -> list[float]:
        """See Ask."""
        told, body = f"--reward {self.name}: ", f'{{"requests": [{", ".join(requests)}]}}'
        asked = urllib.request.Request(self.name, body.encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=timeout) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            kind = Unanswered if error.code >= 500 or error.code == 429 else JudgeError
            raise kind(f"{told}HTTP {error.code} {error.reason}") from None
        except TimeoutError:
            raise Unanswered(
                f"{told}no answer to {len(requests)} requests in {timeout:g} s (--reward_timeout)"
            ) from None
        except (OSError, ValueError) as error:
            raise Unanswered(f"{told}{getattr(error, 'reason', error)}") from None
        try:
            answers = json.loads(text)
        except ValueError:
            raise JudgeError(f"{told}the answer is no JSON: {text[:100].decode(errors='replace')!r}") from None
        if isinstance(answers, dict):
            answers = answers.get("rewards")
        if not isinstance(answers, list):
            raise JudgeError(f'{told}the answer holds no list of rewards: give {{"rewards": [1.0, ...]}}')
        return _numbers(told, answers, len(requests))


def request(task: Task, sample: Sample, output: Any) -> str:
    """What a judge is asked about an output, as a line of JSON."""
    asked = {"prompt": task.prompt(sample), "output": output, "correct": sample.correct, "row": sample.data}
    return json.dumps(asked, ensure_ascii=True, default=str)


def _late(told: str, requests: Sequence[str], timeout: float) -> str:
    return f"{told}no answer to {len(requests)} requests in {timeout:g} s (--reward_timeout)"


def _numbers(told: str, answers: Sequence[Any], count: int) -> list[float]:
    """Answers as numbers; null, which is no verdict, as NaN."""
    if len(answers) != count:
        raise JudgeError(f"{told}gave {len(answers)} answers to {count} requests")
    found: list[Any] = [one.get("reward", one) if isinstance(one, dict) else one for one in answers]
    for one in found:
        if one is not None and not isinstance(one, int | float):
            raise JudgeError(f"{told}an answer is no number: {json.dumps(one)[:100]}")
    return [math.nan if one is None else float(one) for one in found]


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _checksum(line: Sequence[Any]) -> int:
    return zlib.crc32(json.dumps(line).encode())


def _lines(path: Path) -> Iterator[tuple[str, float]]:
    """What a file remembers; a line that a kill or a disk has damaged is as if it were not there."""
    for text in path.read_text("utf-8", "replace").splitlines() if path.is_file() else []:
        try:
            key, reward, checksum = json.loads(text)
        except (ValueError, TypeError):
            continue
        if checksum == _checksum([key, reward]):
            yield key, reward
