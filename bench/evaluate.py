"""Prompt evaluation: the engine and the generator against one row at a time, examples per second.

Run: python -m bench.evaluate [--rounds N] [--only WORD] [MODEL_FOLDER DATA_FOLDER [--samples N]]
Without folders: an OPT-125m of random weights, on rows of random tokens and on the token rows of the test data. With
them: every task in the data folder, zero-shot and 4-shot, on that model. The reference feeds every row alone and
computes logits of the whole vocabulary at every position. Where it would take minutes it gets `reference_samples` of
the samples; `examples` counts those in samples of average length. Both are given tokens, not text, and both are
checked to give the same numbers before they are timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bench.common import compare_rates
from bench.workload import model_of
from justforward.models.loading import OPT_BOS, LoadedModel, load
from justforward.scoring import ScoringEngine
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.scoring.prompts import PromptEncoder, Row
from justforward.tasks import get_task, names

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
SHAPE = "125m"
MODEL = f"OPT-{SHAPE} shape"
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Of mean log-probabilities, by the dtype of the weights."""
NEW_TOKENS = 50


@dataclass(frozen=True)
class Scored:
    """Samples to choose a candidate for, one row per candidate; the slow contender gets `few` of them."""

    figure: str
    samples: list[list[Row]]
    few: int
    goal: float | None = None

    @property
    def rows(self) -> list[Row]:
        """All rows, sample after sample."""
        return [row for sample in self.samples for row in sample]

    def part(self, few: int) -> Scored:
        """`few` of the samples, at even distances."""
        return replace(self, samples=spread(self.samples, few))

    def worth(self, part: Scored) -> float:
        """How many samples of average length a part of them is."""
        return len(self.samples) * sum(len(r.tokens) for r in part.rows) / sum(len(r.tokens) for r in self.rows)

    def facts(self) -> dict[str, Any]:
        """Lengths, for the figure's line."""
        rows = self.rows
        return {
            "tokens_per_row": span(len(row.tokens) for row in rows),
            "scored_per_row": span(len(row.tokens) - row.start for row in rows),
            "rows_per_sample": span(len(sample) for sample in self.samples),
        }


@dataclass(frozen=True)
class Continued:
    """Prompts to continue; the slow contender gets `few` of them."""

    figure: str
    prompts: list[tuple[int, ...]]
    few: int
    goal: float | None = None

    def facts(self, tokenizer: Any, written: Sequence[str]) -> dict[str, Any]:
        """Lengths, for the figure's line."""
        return {
            "tokens_per_prompt": span(len(prompt) for prompt in self.prompts),
            "new_tokens": span(len(tokenizer.encode(text, add_special_tokens=False)) for text in written),
        }


def span(values: Iterable[int]) -> list[int]:
    """[least, greatest]."""
    known = list(values)
    return [min(known), max(known)]


def spread(items: list, few: int) -> list:
    """`few` of the items at even distances, or all."""
    few = min(few, len(items))
    return [items[i * len(items) // few] for i in range(few)]


@torch.no_grad()
def one_by_one(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    """The reference: every row alone, logits of the whole vocabulary at every position; the rows' means."""
    scores = []
    for row in rows:
        ids = torch.tensor([row.tokens], device=model.device)
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
        places = torch.arange(row.start - 1, len(row.tokens) - 1, device=model.device)
        picked = logprobs[places, ids[0, row.start :]]
        scores.append(picked.mean())
    return torch.stack(scores)


@torch.no_grad()
def one_prompt_at_a_time(model: Any, generator: Generator, prompts: Sequence[tuple[int, ...]]) -> list[str]:
    """The reference: transformers' own greedy search on every prompt alone."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=generator.settings.max_new_tokens,
            do_sample=False,
            eos_token_id=generator.stops,
            pad_token_id=generator.pad,
        )
        texts.append(generator.tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip())
    return texts


@torch.no_grad()
def means(engine: ScoringEngine, rows: list[Row]) -> torch.Tensor:
    """Ours: plan and forward passes."""
    return engine.score(rows).means()


def agreement(engine: ScoringEngine, rows: list[Row], few: list[Row], theirs: torch.Tensor) -> float:
    """The largest difference of scores, after checking that it is rounding. All rows are scored, as when timed."""
    scores = dict(zip(rows, means(engine, rows).cpu(), strict=True))
    difference = (torch.stack([scores[row] for row in few]) - theirs.cpu()).abs().max().item()
    assert difference < TOLERANCE[next(engine.model.parameters()).dtype], f"the contenders differ by {difference}"
    return difference


def scoring(model: Any, scored: Scored, rounds: int) -> None:
    """Time both on the same samples, after checking that they agree."""
    engine, rows, few = ScoringEngine(model), scored.rows, scored.part(scored.few)
    difference = agreement(engine, rows, few.rows, one_by_one(model, few.rows))
    plan = engine.plan(rows)
    compare_rates(
        scored.figure,
        {
            "justforward": (len(scored.samples), lambda: means(engine, rows)),
            "one by one": (scored.worth(few), lambda: one_by_one(model, few.rows)),
        },
        runs=rounds,
        device=str(model.device),
        goal=scored.goal,
        reference_samples=len(few.samples),
        **scored.facts(),
        tokens={"fed": plan.fed_tokens, "one by one": plan.plain_tokens},
        largest_difference=difference,
    )


def generation(loaded: LoadedModel, continued: Continued, new_tokens: int, rounds: int) -> None:
    """Time both on the same prompts, after checking that they write the same."""
    generator = Generator(loaded.model, loaded.tokenizer, GenerationSettings(max_new_tokens=new_tokens))
    prompts, few = continued.prompts, spread(continued.prompts, continued.few)
    texts = dict(zip(prompts, generator.generate(prompts), strict=True))
    written = one_prompt_at_a_time(loaded.model, generator, few)
    assert [texts[prompt] for prompt in few] == written, "the contenders write different texts"
    compare_rates(
        continued.figure,
        {
            "justforward": (len(prompts), lambda: generator.generate(prompts)),
            "one by one": (len(few), lambda: one_prompt_at_a_time(loaded.model, generator, few)),
        },
        runs=rounds,
        device=str(loaded.model.device),
        goal=continued.goal,
        **continued.facts(loaded.tokenizer, list(texts.values())),
    )


def random_opt(shape: str = SHAPE, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LoadedModel:
    """An OPT of random weights, with a tokenizer in which every id is a word of its own."""
    model: Any = model_of(shape, dtype, device)
    config = model.config
    return LoadedModel(model, word_tokenizer(config.vocab_size), OPT_BOS, config.max_position_embeddings)


def word_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """`size` words: text and ids determine each other, so whatever a random model writes can be decoded."""
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "\n": 4} | {f"w{i}": i for i in range(5, size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "removed")
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=False, **special)


def random_tokens(length: int, seed: int) -> tuple[int, ...]:
    """Ordinary words of the random model."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(5, 50_000, (length,), generator=generator).tolist())


def golden_rows(name: str, least_candidates: int = 2) -> list[list[Row]]:
    """The token rows of a task's test data (synthetic rows, tokenised as text with 4,091 of GPT-2's merges)."""
    task = get_task(name)
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "tiny-opt-4k")
    encoder = PromptEncoder(tokenizer, task, bos_token_id=OPT_BOS)
    splits = task.load(str(FIXTURES / "golden" / "data"))
    samples = [encoder.candidates(sample) for sample in (*splits.train, *splits.validation)]
    return [rows for rows in samples if len(rows) >= least_candidates]


def scored_workloads(model: str = MODEL) -> list[Scored]:
    """What is scored on the random model."""
    prompts = [random_tokens(61, seed) for seed in range(96)]
    two = [[Row((*prompt, option), 61) for option in (500, 600)] for prompt in prompts]
    shared = random_tokens(830, 1000)
    icl = [[Row(shared + row.tokens, 830 + row.start) for row in rows] for rows in two]
    return [
        Scored(f"zero-shot, 2 one-token options x 62 tokens, {model}", two[:32], 16, 4),
        Scored(f"ICL, 830 shared + 62 tokens x 2 one-token options, {model}", icl, 2, 25),
        Scored(f"Copa (test data), {model}", golden_rows("Copa"), 30, 4),
        Scored(f"ReCoRD (test data, 5 to 7 candidates), {model}", spread(golden_rows("ReCoRD", 5), 20), 2, 4),
    ]


def continued_workload(model: str = MODEL) -> Continued:
    """What is continued on the random model, which never ends an answer: every contender writes all tokens."""
    lengths = [84 + 116 * ((7 * i + 6) % 48) // 47 for i in range(48)]
    prompts = [(OPT_BOS, *random_tokens(length - 1, 2000 + i)) for i, length in enumerate(lengths)]
    return Continued(f"generation, SQuAD-like prompts, never stops early, {model}", prompts, 4, 5)


def synthetic(rounds: int, only: str) -> None:
    """The workloads on the random model."""
    loaded = random_opt()
    for scored in scored_workloads():
        if only in scored.figure:
            scoring(loaded.model, scored, rounds)
    continued = continued_workload()
    if only in continued.figure:
        generation(loaded, continued, NEW_TOKENS, rounds)


def tasks(model_folder: str, data_folder: str, rounds: int, samples: int, only: str) -> None:
    """Every task that has rows in the data folder."""
    loaded = load(model_folder)
    for name in names():
        if not (Path(data_folder) / name).is_dir() or only not in name:
            continue
        task = get_task(name)
        splits = task.load(data_folder)
        encoder = PromptEncoder(loaded.tokenizer, task, max_new_tokens=NEW_TOKENS, bos_token_id=loaded.bos_token_id)
        for shots in (0, 4):
            demonstrations, chosen = splits.train[:shots], splits.validation[:samples]
            figure = f"{name}, {shots}-shot"
            if task.generation:
                prompts = [encoder.generation(sample, demonstrations) for sample in chosen]
                generation(loaded, Continued(figure, prompts, samples // 4), NEW_TOKENS, rounds)
            else:
                rows = [encoder.candidates(sample, demonstrations) for sample in chosen]
                scoring(loaded.model, Scored(figure, rows, samples // 4), rounds)


def main(arguments: Sequence[str] = ()) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.evaluate")
    parser.add_argument("model_folder", nargs="?")
    parser.add_argument("data_folder", nargs="?")
    parser.add_argument("--rounds", type=int, default=5, help="times that every contender runs, in turn")
    parser.add_argument("--only", default="", help="part of a figure's or a task's name")
    parser.add_argument("--samples", type=int, default=16, help="samples per task; the reference gets a quarter")
    given = parser.parse_args(list(arguments))
    if (given.model_folder is None) != (given.data_folder is None):
        parser.error("MODEL_FOLDER and DATA_FOLDER go together")
    if given.model_folder is None:
        synthetic(given.rounds, given.only)
    else:
        tasks(given.model_folder, given.data_folder, given.rounds, max(4, given.samples), given.only)


if __name__ == "__main__":
    main(sys.argv[1:])
