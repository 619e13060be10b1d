"""Prompt evaluation: the scoring engine against one row at a time with logits everywhere, examples per second.

Run: python -m bench.evaluate [MODEL_FOLDER DATA_FOLDER]
Without arguments: an OPT-125m-shaped random model and synthetic prompts. With them: every task in the data folder,
zero-shot and 4-shot, on that model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, OPTConfig

from bench.common import compare
from justforward.models.loading import LoadedModel, load
from justforward.prompts import PromptEncoder, Row
from justforward.scoring import ScoringEngine
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.tasks import get_task, names

SAMPLES = 6
NEW_TOKENS = 20


@torch.no_grad()
def one_by_one(model: torch.nn.Module, rows: Sequence[Row]) -> list[torch.Tensor]:
    """The reference: every row alone, logits of the whole vocabulary at every position."""
    scores = []
    for row in rows:
        ids = torch.tensor([row.tokens])
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
        picked = logprobs[torch.arange(row.start - 1, len(row.tokens) - 1), ids[0, row.start :]]
        scores.append(picked.mean())
    return scores


def scoring(figure: str, model: torch.nn.Module, rows: list[Row], samples: int) -> None:
    """Time both on the same rows, after checking that they agree."""
    engine = ScoringEngine(model)
    with torch.no_grad():
        difference = (engine.score(rows).means() - torch.stack(one_by_one(model, rows))).abs().max().item()
        plan = engine.plan(rows)
    assert difference < 1e-3, difference

    def ours() -> None:
        with torch.no_grad():
            engine.score(rows)

    tokens = {"fed": plan.fed_tokens, "one_by_one": plan.plain_tokens}
    line = compare(
        figure, {"justforward": ours, "one by one": lambda: one_by_one(model, rows)}, runs=2, warmup=0, tokens=tokens
    )
    _rate(line, samples)


def generation(figure: str, loaded: LoadedModel, prompts: list[tuple[int, ...]]) -> None:
    """Time batched against single generation of the same prompts."""
    generator = Generator(loaded.model, loaded.tokenizer, GenerationSettings(max_new_tokens=NEW_TOKENS))
    contenders = {
        "justforward": lambda: generator.generate(prompts),
        "one by one": lambda: [generator.generate([p]) for p in prompts],
    }
    _rate(compare(figure, contenders, runs=2, warmup=0), len(prompts))


def _rate(line: dict, samples: int) -> None:
    rates = {name: round(1e3 * samples / ms, 2) for name, ms in line["milliseconds"].items()}
    print(f"  examples per second: {rates}", flush=True)


def tasks(model_folder: str, data_folder: str) -> None:
    """Every task that has rows in the data folder."""
    loaded = load(model_folder)
    for name in names():
        if not (Path(data_folder) / name).is_dir():
            continue
        task = get_task(name)
        splits = task.load(data_folder)
        encoder = PromptEncoder(loaded.tokenizer, task, max_new_tokens=NEW_TOKENS, bos_token_id=loaded.bos_token_id)
        for shots in (0, 4):
            demonstrations = splits.train[:shots]
            samples = splits.validation[:SAMPLES]
            figure = f"{name}, {shots}-shot"
            if task.generation:
                generation(figure, loaded, [encoder.generation(s, demonstrations) for s in samples])
            else:
                rows = [row for s in samples for row in encoder.candidates(s, demonstrations)]
                scoring(figure, loaded.model, rows, len(samples))


def main() -> None:
    """See the module."""
    if len(sys.argv) == 3:
        tasks(*sys.argv[1:])
        return
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OPTConfig()).eval()
    generator = torch.Generator().manual_seed(0)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 50000, (n,), generator=generator).tolist())

    two = [Row((*prompt, option), 61) for prompt in (tokens(61) for _ in range(SAMPLES)) for option in (500, 600)]
    scoring("zero-shot, 2 one-token options x 62 tokens, OPT-125m shape", model, two, SAMPLES)
    shared = tokens(830)
    many = [Row(shared + row.tokens, 830 + row.start) for row in two]
    scoring("ICL, 830 shared + 62 tokens, OPT-125m shape", model, many, SAMPLES)
    long = [Row(p + tokens(30), 200) for p in (tokens(200) for _ in range(4)) for _ in range(8)]
    scoring("8 candidates of 30 tokens behind 200, OPT-125m shape", model, long, 4)


if __name__ == "__main__":
    main()
