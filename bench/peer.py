"""The same scoring and generation by EleutherAI's harness (lm_eval), on the same model and tokens, examples per second.

Run: python -m bench.peer [--rounds N] [--only WORD]
lm_eval is no dependency of ours: pip install lm_eval. It gets the tokens, not the text, of what is scored, and the
batch size at which it was the fastest of those tried; `largest_difference` is that of two mean log-probabilities. What
it generates it gets as text, which in this vocabulary is quick to tokenise. The rows are those of bench/evaluate.py.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch

from bench import evaluate
from bench.common import compare_rates
from bench.evaluate import NEW_TOKENS, Continued, Scored
from justforward.models.loading import LoadedModel
from justforward.scoring import ScoringEngine
from justforward.scoring.generation import GenerationSettings, Generator
from justforward.scoring.prompts import Row

NEEDS = "lm_eval"
GOAL = 1
SIZES = (1, 2, 4, 8, 16, 32)
MOST_TOKENS = 8192
"""Of a batch of the harness, which keeps two float32 tensors of the whole vocabulary for each."""


def harness(loaded: LoadedModel, batch_size: int) -> Any:
    """lm_eval's wrapper around the same model object."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wrapper = importlib.import_module("lm_eval.models.huggingface").HFLM
    return wrapper(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)


def scored_by(peer: Any, rows: Sequence[Row]) -> torch.Tensor:
    """The harness's means of the rows, in order."""
    requests = [(("", ""), list(row.tokens[: row.start]), list(row.tokens[row.start :])) for row in rows]
    answers = peer._loglikelihood_tokens(requests, disable_tqdm=True)
    return torch.tensor([sum_ / len(request[2]) for (sum_, _), request in zip(answers, requests, strict=True)])


def written_by(peer: Any, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """The harness's continuations, greedy, up to the end of the line."""
    instance = importlib.import_module("lm_eval.api.instance").Instance
    how = {"until": ["\n"], "max_gen_toks": new_tokens, "do_sample": False}
    requests = [instance("generate_until", {}, (prompt, how), i) for i, prompt in enumerate(prompts)]
    return [text.strip() for text in peer.generate_until(requests, disable_tqdm=True)]


def fastest(loaded: LoadedModel, sizes: Sequence[int], run: Callable[[Any], object]) -> tuple[Any, dict[str, Any]]:
    """The harness with the best of the batch sizes for `run`, and what was tried, for the figure's line."""
    seconds: dict[int, float] = {}
    for size in sizes:
        peer = harness(loaded, size)
        start = time.perf_counter()
        run(peer)
        seconds[size] = time.perf_counter() - start
    best = min(seconds, key=lambda size: seconds[size])
    tried = {str(size): round(value, 2) for size, value in seconds.items()}
    facts = {"peer": f"{NEEDS} {version(NEEDS)}", "batch_size": best, "seconds_by_batch_size": tried}
    return harness(loaded, best), facts


def sizes_for(longest: int, examples: int) -> list[int]:
    """The batch sizes that fill a batch and fit into memory."""
    return [size for size in SIZES if size == 1 or (size <= examples and size * longest <= MOST_TOKENS)]


def scoring(loaded: LoadedModel, scored: Scored, rounds: int) -> None:
    """Time both on the same samples, after checking that they agree; the harness gets twice what row by row gets."""
    engine, rows, few = ScoringEngine(loaded.model), scored.rows, scored.part(2 * scored.few)
    sizes = sizes_for(max(len(row.tokens) for row in few.rows), len({row.tokens[:-1] for row in few.rows}))
    scored_by(harness(loaded, 1), few.rows[:2])
    peer, facts = fastest(loaded, sizes, lambda peer: scored_by(peer, few.rows))
    difference = evaluate.agreement(engine, rows, few.rows, scored_by(peer, few.rows))
    compare_rates(
        f"peer, {scored.figure}",
        {
            "justforward": (len(scored.samples), lambda: evaluate.means(engine, rows)),
            NEEDS: (scored.worth(few), lambda: scored_by(peer, few.rows)),
        },
        runs=rounds,
        device=str(loaded.model.device),
        goal=GOAL,
        reference_samples=len(few.samples),
        **facts,
        **scored.facts(),
        largest_difference=difference,
    )


def generation(loaded: LoadedModel, continued: Continued, rounds: int) -> None:
    """Time both on the same prompts, after checking that they write the same."""
    generator = Generator(loaded.model, loaded.tokenizer, GenerationSettings(max_new_tokens=NEW_TOKENS))
    prompts: Any = continued.prompts
    texts = [str(loaded.tokenizer.decode(prompt)) for prompt in prompts]
    assert [tuple(loaded.tokenizer.encode(text)) for text in texts] == prompts, "the texts are not these tokens"
    sizes = [size for size in SIZES if 8 <= size <= len(prompts)]
    peer, facts = fastest(loaded, sizes, lambda peer: written_by(peer, texts, NEW_TOKENS))
    written = written_by(peer, texts, NEW_TOKENS)
    assert generator.generate(prompts) == written, "the contenders write different texts"
    compare_rates(
        f"peer, {continued.figure}",
        {
            "justforward": (len(prompts), lambda: generator.generate(prompts)),
            NEEDS: (len(prompts), lambda: written_by(peer, texts, NEW_TOKENS)),
        },
        runs=rounds,
        device=str(loaded.model.device),
        goal=GOAL,
        **facts,
        **continued.facts(loaded.tokenizer, written),
    )


def main(arguments: Sequence[str] = ()) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.peer")
    parser.add_argument("--rounds", type=int, default=5, help="times that every contender runs, in turn")
    parser.add_argument("--only", default="", help="part of a figure's name")
    given = parser.parse_args(list(arguments))
    if importlib.util.find_spec(NEEDS) is None:
        raise SystemExit(f"bench.peer compares with {NEEDS}, which is not installed: pip install {NEEDS}")
    loaded = evaluate.random_opt()
    for scored in evaluate.scored_workloads():
        if given.only in scored.figure:
            scoring(loaded, scored, given.rounds)
    continued = evaluate.continued_workload()
    if given.only in continued.figure:
        generation(loaded, continued, given.rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
