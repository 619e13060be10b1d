"""Models of a given shape with random weights, and batches for them: what the benchmarks work on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, OPTConfig

from bench import textbook
from justforward.optim import MeZO
from justforward.optim.build import build
from justforward.optim.methods import METHODS
from justforward.optim.probes.closures import Shares
from justforward.optim.probes.graphs import Graphs
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example, ScoredObjective

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 128, "vocab_size": 512},
    "25m": {"hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "ffn_dim": 1024},
    "125m": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "ffn_dim": 3072},
    "350m": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "ffn_dim": 4096},
    "1.3b": {"hidden_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 32, "ffn_dim": 8192},
    "6.7b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 16384},
    "13b": {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "ffn_dim": 20480},
    "thin": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 128},
}
"""OPT's; the vocabulary is 50,272 where nothing else is said."""

TOKENS = 61
"""Of a prompt; a one-token option behind it makes 62."""

OPTIONS = (500, 501)


def model_of(shape: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.nn.Module:
    """An OPT with random weights, made where it is to be: 13 billion of them take minutes on a CPU."""
    torch.manual_seed(0)
    sizes = SHAPES[shape]
    config = OPTConfig(**sizes, word_embed_proj_dim=sizes["hidden_size"])
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def adapted(model: torch.nn.Module, method: str) -> torch.nn.Module:
    """The model under an adapter: "lora" on query and value, rank 8, or a "prefix" of 5 tokens; or "full", itself."""
    if method == "full":
        return model
    if method == "lora":
        config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    else:
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    return get_peft_model(model, config).eval()  # type: ignore[arg-type]


def prompts_of(count: int, vocabulary: int, tokens: int = TOKENS) -> list[tuple[int, ...]]:
    """Random token rows of one length."""
    chance = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(5, vocabulary, (tokens,), generator=chance).tolist()) for _ in range(count)]


@dataclass
class Step:
    """One MeZO step on a batch of classification with two one-token options, and what it is compared with."""

    model: torch.nn.Module
    mezo: MeZO
    measure: Callable[[], Tensor]
    measure_pair: Callable[[], Tensor] | None
    prompts: list[tuple[int, ...]]
    shares: Shares | None = None

    def run(self) -> None:
        """A whole step: two probes and the update."""
        self.mezo.estimate(self.measure, paired=self.measure_pair, shares=self.shares)
        self.mezo.step()

    @torch.no_grad()
    def two_forwards(self) -> None:
        """The passes that a step cannot do without, on the same plan."""
        self.measure()
        self.measure()

    @torch.no_grad()
    def two_replays(self) -> None:
        """The same as CUDA graphs."""
        assert self.mezo.graphs is not None
        with self.mezo.graphs.used():
            self.two_forwards()

    def textbook(self) -> None:
        """The reference's step on the same examples."""
        options = [(option,) for option in OPTIONS]
        loss = lambda: textbook.classification_loss(self.model, self.prompts, options)  # noqa: E731
        textbook.step(list(self.model.parameters()), loss, lr=1e-6, eps=1e-3, seed=0)


def step_of(
    shape: str = "125m",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    examples: int = 16,
    method: str = "full",
    probe: str = "auto",
    distribution: str = "gaussian",
    compiled: bool = False,
    zo_method: str = "mezo",
    samples: int | None = None,
) -> Step:
    """A step of an OPT of that shape to measure; see `step_on`."""
    model = adapted(model_of(shape, dtype, device), method)
    made = {"probe": probe, "distribution": distribution, "compiled": compiled, "zo_method": zo_method}
    return step_on(model, examples=examples, samples=samples, **made)


def shares_of(objective: ScoredObjective, engine: ScoringEngine, examples: Sequence[Example], count: int) -> Shares:
    """A batch divided among directions, as the Trainer divides it."""
    whole, owners = objective.batch(engine, examples), tuple(i * count // len(examples) for i in range(len(examples)))
    batch = objective.batch(engine, examples, owners)

    def alone(direction: int) -> Tensor | float:
        own = [e for e, owner in zip(examples, owners, strict=True) if owner == direction]
        part = objective.batch(engine, own)
        return objective.measure(engine, part).loss * (part.weight * count / whole.weight) if own else 0.0

    return Shares(count, alone, lambda told: objective.measure_shares(engine, batch, count, told))


def step_on(
    model: torch.nn.Module,
    *,
    examples: int = 16,
    probe: str = "auto",
    distribution: str = "gaussian",
    compiled: bool = False,
    zo_method: str = "mezo",
    samples: int | None = None,
    tokens: int = TOKENS,
    device: str | None = None,
    graphs: bool = False,
) -> Step:
    """A step of that model to measure; it has been run once, so kernels are compiled and probes verified.

    samples: directions, where it is not the method's own number; tokens: of a prompt; device: where the model
    computes, if not where its weights are; graphs: whether passes of probes are CUDA graphs.
    """
    vocabulary = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    prompts = prompts_of(examples, vocabulary, tokens)
    rows = [Example(tuple(Row((*p, option), len(p)) for option in OPTIONS), 0) for p in prompts]
    engine = ScoringEngine(model, device=None if device is None else torch.device(device))
    objective = Classification()
    engine.graphs = Graphs(model) if graphs else None
    if compiled:
        engine.caller = torch.compile(model)  # type: ignore[assignment]
    batch = objective.batch(engine, rows)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    chosen = METHODS[zo_method]
    noise, rule = build(chosen.directions, chosen.rule, {}, {"distribution": distribution, **chosen.settings})
    settings: dict[str, Any] = {
        "samples": samples or chosen.samples,
        "sides": chosen.sides,
        "split": chosen.split,
        "shaping": chosen.shaping,
    }
    made = {"model": model, "probe": probe, "noise": noise, "rule": rule, "graphs": engine.graphs}
    mezo = MeZO(named, lr=1e-6, eps=1e-3, **made, **settings)
    pair = (lambda: objective.measure_pair(engine, batch)) if engine.fits(batch.plan) > 1 else None
    shares = shares_of(objective, engine, rows, chosen.samples) if chosen.split else None
    step = Step(model, mezo, lambda: objective.measure(engine, batch).loss, pair, prompts, shares)
    step.run()
    return step
