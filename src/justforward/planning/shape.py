"""The sizes of a model, from its configuration alone: no weights are loaded or needed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from justforward.compat import skeleton
from justforward.models.causality import may_be_causal
from justforward.models.loading import load_config, not_causal, positions_of
from justforward.models.reading import reading
from justforward.models.sources import ModelError, find_source
from justforward.models.towers import inside, unseen_towers
from justforward.models.tuning import lora_targets
from justforward.optim.build import build
from justforward.optim.methods import Method, get_method
from justforward.optim.probes.modules import FEW
from justforward.optim.update import state_bytes


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What memory and time of a causal LM follow from; numbers of weights, and widths of a token's vectors.

    parameters: all distinct weights (tied ones once); blocks: those of the blocks' matrices; multiplied: of these, what
    one token is multiplied by (of a mixture, the experts that it is sent to); head: those of the language-model head,
    `vocabulary` rows, which are the embedding's where they are tied.
    layers, hidden: number of blocks and their width; query, key_value: widths of a token's queries, and of its keys (or
    values); feed_forward, up: what the feed-forward's last matrix reads, and all that its first ones write (twice that
    in a gated one).
    smooth: the activation function needs its input for the backward pass (ReLU does not); unfused_norms: norms are
    written as separate operations (RMSNorm); dropout: training draws masks.
    embeddings: tables that are looked up for each token (2 with learned positions).
    module: weights of the largest module of the blocks; linear, other: those of its largest layer, of a kind that is
    perturbed in pieces, and of the largest of another kind; few: those of all small tensors, perturbed together.
    lora_widths: sum over the projections that LoRA goes on of inputs plus outputs; None where it fits none.
    positions: the longest row, None for no limit.
    """

    parameters: int
    blocks: int
    multiplied: int
    head: int
    tied: bool
    vocabulary: int
    layers: int
    hidden: int
    query: int
    key_value: int
    feed_forward: int
    up: int
    smooth: bool
    unfused_norms: bool
    dropout: bool
    embeddings: int
    module: int
    linear: int
    other: int
    few: int
    lora_widths: int | None
    positions: int | None
    state: int = 0


def read_shape(name: str, *, trust_remote_code: bool = False, method: str = "mezo") -> ModelShape:
    """The shape of the model that a hub id, a folder with `config.json`, or a GGUF file names; with a method's state.

    Raises ValueError, in one line, for what cannot be found or is no causal LM.
    """
    model = _skeleton(name, trust_remote_code=trust_remote_code)
    try:
        return replace(shape_of(model), state=_state(model, get_method(method)))
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"MODEL {name}: not the shape of a transformer that can be planned ({error})") from error


def _skeleton(name: str, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model without memory for its weights."""
    try:
        source, config = find_source(name), load_config(name, trust_remote_code=trust_remote_code)
        if not may_be_causal(config):
            raise ModelError(name, not_causal(config))
        with reading(name, source, "configuration"), torch.device("meta"):
            return skeleton(config, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ValueError(f"MODEL {name}: {error.reason}") from error


def shape_of(model: PreTrainedModel) -> ModelShape:
    """The shape of a model, which may be on the meta device."""
    config: Any = model.config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(embedding, nn.Module)
    head_weights = _count(head if head is not None else embedding)
    matrices = [
        (name, owner, p)
        for name, owner in model.named_modules()
        for p in owner.parameters(recurse=False)
        if p.dim() > 1 and owner is not head and not isinstance(owner, nn.Embedding)
    ]
    sides = [_sides(owner, p) for name, owner, p in matrices if "attn" not in name and "attention" not in name]
    feed_forward, up = _feed_forward(sides, config.hidden_size, config.num_hidden_layers)
    # A linear layer is perturbed in pieces, any other module at once; of embedding and head only some rows are.
    modules = [
        (isinstance(module, nn.Linear), sum(p.numel() for p in module.parameters(recurse=False)))
        for module in model.modules()
        if type(module) is not nn.Embedding and module is not head
    ]
    chosen = getattr(config, "num_experts_per_tok", None) or 1
    norms = [type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__]
    return ModelShape(
        parameters=_count(model),
        blocks=sum(p.numel() for _, _, p in matrices),
        multiplied=sum(p.numel() if p.dim() == 2 else p[0].numel() * min(chosen, len(p)) for _, _, p in matrices),
        head=head_weights,
        tied=head is None or getattr(head, "weight", None) is getattr(embedding, "weight", head),
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        query=heads * width,
        key_value=key_heads * width,
        feed_forward=feed_forward * (chosen if any(p.dim() == 3 for _, _, p in matrices) else 1),
        up=up * (chosen if any(p.dim() == 3 for _, _, p in matrices) else 1),
        smooth=_activation(config) != "relu",
        unfused_norms=any("RMS" in name for name in norms),
        dropout=any(module.p > 0 for module in model.modules() if isinstance(module, nn.Dropout))
        or (getattr(config, "dropout", None) or 0) > 0,
        embeddings=sum(isinstance(module, nn.Embedding) for module in model.modules()),
        module=max(own for _, own in modules),
        linear=max((own for linear, own in modules if linear), default=0),
        other=max((own for linear, own in modules if not linear), default=0),
        few=sum(p.numel() for p in model.parameters() if p.numel() <= FEW),
        lora_widths=_lora_widths(model),
        positions=positions_of(config),
    )


def _state(model: nn.Module, method: Method) -> int:
    """Bytes that a method keeps beside the weights where all are trained."""
    directions, rule = build(method.directions, method.rule, {}, method.settings)
    return state_bytes(list(model.named_parameters()), directions, rule)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())  # names a tied weight once


def _sides(owner: nn.Module, p: nn.Parameter) -> tuple[int, int]:
    """Inputs and outputs of a matrix, or of each expert's."""
    outputs, inputs = p.shape[-2:]
    return (outputs, inputs) if isinstance(owner, Conv1D) else (inputs, outputs)


def _feed_forward(sides: list[tuple[int, int]], hidden: int, layers: int) -> tuple[int, int]:
    """Width that the feed-forward's last matrix reads, and widths that its first ones write, together."""
    inner = max((inputs for inputs, outputs in sides if outputs == hidden), default=hidden)
    written = sum(outputs for inputs, outputs in sides if inputs == hidden and outputs in (inner, 2 * inner))
    return inner, max(inner, written // max(1, layers))


def _activation(config: Any) -> str:
    for name in ("activation_function", "hidden_act", "hidden_activation"):
        if isinstance(value := getattr(config, name, None), str):
            return value
    return ""


def _lora_widths(model: PreTrainedModel) -> int | None:
    towers = _towers(model)
    try:
        targets = lora_targets(model, towers)
    except ValueError:
        return None
    named = [(name, module) for name, module in model.named_modules() if not inside(name, towers)]
    return sum(sum(module.weight.shape) for name, module in named if name.rsplit(".", 1)[-1] in targets)  # type: ignore[arg-type]


@torch.no_grad()
def _towers(model: PreTrainedModel) -> list[str]:
    """What text does not reach of a multimodal model, as far as a pass without values can tell."""
    if not model.config.sub_configs:
        return []
    try:
        return unseen_towers(model)
    except RuntimeError:  # some models look at values
        return []
