"""All figures of one GPU, in one call of a few minutes: noise, step, memory, evaluation.

Run: python -m bench.gpu [SHAPE]
OPT-1.3B shape in bf16 by default. Without a CUDA device it says so and does nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from bench import textbook
from bench.common import compare, compare_rates, report
from bench.evaluate import one_by_one
from bench.workload import OPTIONS, model_of, prompts_of, step_of
from justforward.noise import DISTRIBUTIONS, backend, noise_key
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row


def noise(device: str, elements: int = 1 << 28) -> None:
    """The noise kernel against a copy on the device: bytes moved per second, and bits equal to the CPU's."""
    kernel = backend(device)
    for dtype in (torch.float32, torch.bfloat16):
        weights = torch.zeros(elements, dtype=dtype, device=device)
        other = torch.empty_like(weights)
        moved = 2 * weights.numel() * weights.element_size()
        for distribution in DISTRIBUTIONS:
            check_bits(device, dtype, distribution)
            line = compare(
                f"noise pass, {dtype}, {distribution}",
                {
                    "copy": lambda w=weights, o=other: o.copy_(w),
                    "noise": lambda w=weights, d=distribution: kernel.add_(
                        [w], [noise_key(0, 0, 0, "w")], 1e-3, 0.0, d
                    ),
                },
                device=device,
            )
            times: dict[str, float] = line["milliseconds"]  # type: ignore[assignment]
            print({name: f"{moved / max(ms, 1e-3) / 1e9:.2f} TB/s" for name, ms in times.items()}, flush=True)


def check_bits(device: str, dtype: torch.dtype, distribution: str) -> None:
    """Refuse to time a kernel that draws something else than the CPU does."""
    drawn = [torch.ones(100_003, dtype=dtype, device=d) for d in (device, "cpu")]
    for weights in drawn:
        backend(weights.device).add_([weights], [7], 1e-3, 0.0, distribution, rounding="stochastic")
    assert torch.equal(drawn[0].cpu(), drawn[1]), (dtype, distribution)


def steps(device: str, shape: str, rounds: int = 7) -> None:
    """A step against the textbook's and against its own two forwards: full, LoRA, prefix; large and small batches."""
    reference = step_of(shape, dtype=torch.bfloat16, device=device)
    compare(
        f"step: textbook / ours, OPT-{shape}, bf16",
        {"ours": reference.run, "textbook": reference.textbook},
        runs=rounds,
        device=device,
        goal=4,
    )
    del reference
    for method in ("full", "lora", "prefix"):
        for examples in (16, 4):
            made = step_of(shape, dtype=torch.bfloat16, device=device, method=method, examples=examples)
            compare(
                f"step / two forwards: OPT-{shape}, bf16, {method}, {examples} examples",
                {"two forwards": made.two_forwards, "step": made.run},
                runs=rounds,
                device=device,
                goal=1.10 if method == "full" else 1.03,
                paired=made.measure_pair is not None,
            )
            del made


def memory(device: str, shape: str) -> None:
    """Peak of the allocator: a step over evaluating its batch."""
    made = step_of(shape, dtype=torch.bfloat16, device=device)
    evaluation, step = peak_mib(device, made.measure), peak_mib(device, made.run)
    ratio = {"step/evaluation": round(step / evaluation, 4)}
    report(f"peak memory: OPT-{shape}, bf16", ratio=ratio, goal=1.02, mib=[step, evaluation], device=device)


@torch.no_grad()
def peak_mib(device: str, run: Callable[[], object]) -> float:
    """Most memory that was allocated while it ran."""
    if not device.startswith("cuda"):
        run()
        return 1.0
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


@torch.no_grad()
def evaluation(device: str, shape: str, samples: int = 32) -> None:
    """Zero-shot: one row at a time with all logits / ours."""
    model = model_of(shape, torch.bfloat16, device)
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    rows = [Row((*p, o), len(p)) for p in prompts_of(samples, vocabulary) for o in OPTIONS]
    engine = ScoringEngine(model)
    engine.score(rows)
    compare_rates(
        f"zero-shot, OPT-{shape}, bf16",
        {
            "justforward": (samples, lambda: engine.score(rows)),
            "one by one": (samples, lambda: one_by_one(model, rows)),
        },
        goal=4,
        device=device,
    )
    loss = textbook.classification_loss(model, [r.tokens[:-1] for r in rows[::2]], [(o,) for o in OPTIONS])
    assert loss.isfinite()


def main(shape: str = "1.3b", device: str = "cuda") -> None:
    """Print every figure."""
    if device == "cuda" and not torch.cuda.is_available():
        print("bench.gpu is left out: there is no CUDA device", file=sys.stderr)
        return
    noise(device, 1 << 28 if device == "cuda" else 1 << 16)
    steps(device, shape)
    memory(device, shape)
    evaluation(device, shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
