"""Prompt evaluation: zero-shot, in context and generation, against one row at a time and against lm_eval."""

from __future__ import annotations

import importlib.util

import torch

from bench import evaluate, peer
from bench.gpu.where import Where


def measure(where: Where) -> None:
    """Scores in bf16; texts in float32, in which the longest of equal numbers is the same one way or the other."""
    shape, rounds, new_tokens = where.pick("1.3b", "thin"), where.pick(3, 1), where.pick(evaluate.NEW_TOKENS, 5)
    against_lm_eval = importlib.util.find_spec(peer.NEEDS) is not None
    if not against_lm_eval:
        print(f"{peer.NEEDS} is not installed: one row at a time is the only other", flush=True)
    loaded = evaluate.random_opt(shape, torch.bfloat16, where.device)
    workloads = evaluate.scored_workloads(f"OPT-{shape} shape, bf16")
    for scored in workloads:
        evaluate.scoring(loaded.model, scored, rounds)
    wide = evaluate.random_opt(shape, torch.float32, where.device)
    continued = evaluate.continued_workload(f"OPT-{shape} shape, fp32")
    # Some 20 ms for each token of a prompt alone, on any GPU: it is launches that take them.
    evaluate.generation(wide, continued, new_tokens, where.pick(2, 1))
    if against_lm_eval:
        for scored in workloads:
            peer.scoring(loaded, scored, rounds)
        peer.generation(wide, continued, where.pick(2, 1))
