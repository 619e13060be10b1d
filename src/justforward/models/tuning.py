"""What of a model is trained: all of it, LoRA updates, a prefix, or its head.

    tuned = tune(loaded, TuningSettings("lora", lora_r=8))

A tuner gives back a model in which exactly the trained parameters require gradients, whether MeZO or backpropagation
moves them. Adapters are PEFT's, kept in float32 over a base of any dtype, and saved as PEFT saves them.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    get_peft_model,
    initialize_kv_prefix_from_past_key_values,
)
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from justforward.compat import CACHE
from justforward.models.blocks import chosen, find_blocks
from justforward.models.loading import LoadedModel
from justforward.models.prefix_mlp import PrefixMLPModel
from justforward.models.quantised import has_scales, train_scales
from justforward.models.reading import listed
from justforward.models.residual import find_stream
from justforward.models.towers import inside, unseen_towers
from justforward.registry import Registry

logger = logging.getLogger(__name__)

QUERY_AND_VALUE = (("q_proj", "v_proj"), ("query", "value"), ("q_lin", "v_lin"), ("wq", "wv"))
"""Names that model families give the projections LoRA is put on; the first pair that a model has is taken."""

FUSED_PROJECTIONS = ("qkv_proj", "query_key_value", "c_attn", "Wqkv", "W_pack")
"""Names of one projection that makes query, key and value together."""

PREFIX_MLP_WIDTH = 512
"""Hidden width of the MLP that makes a reparametrised prefix."""


@dataclass(frozen=True)
class TuningSettings:
    """How to tune.

    method: a name in TUNERS. untie: give the head weights of its own first. lora_r, lora_alpha: rank and scale of
    LoRA. num_prefix: length of the prefix in tokens; reparametrise: make the prefix by an MLP; prefix_from_activations:
    start it from the activations of random tokens; blocks: "A:B", the blocks that are trained, or put LoRA on; stream:
    put LoRA on the layers that add to the residual stream, in place of query and value.
    """

    method: str = "full"
    untie: bool = False
    lora_r: int = 8
    lora_alpha: int = 16
    num_prefix: int = 5
    reparametrise: bool = False
    prefix_from_activations: bool = True
    blocks: str | None = None
    stream: bool = False


Tuner = Callable[[LoadedModel, TuningSettings], LoadedModel]
TUNERS: Registry[Tuner] = Registry("tuning method", entry_points="justforward.tuners")


def choose(**flags: bool) -> str:
    """The method of the command line's flag that is given (lora, prefix, head, scales); "full" where none is."""
    return next((name for name, given in flags.items() if given), "full")


def tune(loaded: LoadedModel, settings: TuningSettings) -> LoadedModel:
    """Make `loaded` ready for training by `settings.method`; its model is changed in place or wrapped by PEFT.

    Draws from torch's global generator what starts at random: seed it right before. Raises ValueError for an unknown
    method, and for a model that the method does not fit.
    """
    tuner = TUNERS.get(settings.method)
    if settings.untie and not untie(loaded.model):
        logger.info("--untie_emb: the head already has weights of its own")
    tuned = tuner(loaded, settings)
    trained = sum(p.numel() for p in tuned.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in tuned.model.parameters())
    logger.info("%s tuning, trainable parameters: %d (%.4g %%)", settings.method, trained, 100 * trained / total)
    return tuned


@TUNERS.register("full")
def tune_all(loaded: LoadedModel, settings: TuningSettings) -> LoadedModel:
    """Train every weight."""
    _refuse_quantised(loaded.model)
    loaded.model.requires_grad_(True)
    if settings.blocks is not None:
        train_blocks(loaded.model, settings.blocks)
    with torch.enable_grad():
        towers = unseen_towers(loaded.model, loaded.tokenizer)
    frozen = [p for name, p in loaded.model.named_parameters() if p.requires_grad and inside(name, towers)]
    for p in frozen:
        p.requires_grad_(False)
    if frozen:
        size = sum(p.numel() for p in frozen)
        logger.info("text does not reach %s: its %d weights stay as they are", listed(towers), size)
    return loaded


def train_blocks(model: nn.Module, words: str) -> None:
    """Of what is trained, leave to these blocks ("A:B") what is theirs, and freeze the rest."""
    blocks = find_blocks(model)
    numbers = chosen(words, len(blocks))
    for name, p in model.named_parameters():
        p.requires_grad_(p.requires_grad and blocks.number(name) in numbers)


@TUNERS.register("head")
def tune_head(loaded: LoadedModel, settings: TuningSettings) -> LoadedModel:
    """Train the language-model head alone. A head that shares the input embedding's weights gets its own first."""
    _refuse_quantised(loaded.model)
    if untie(loaded.model):
        logger.info("the head shares the input embedding's weights: it gets a copy, so that only the head is trained")
    loaded.model.requires_grad_(False)
    _head(loaded.model).requires_grad_(True)
    return loaded


@TUNERS.register("scales")
def tune_scales(loaded: LoadedModel, settings: TuningSettings) -> LoadedModel:
    """Train the scales of quantised weights, and nothing else (QZO, Shang et al., arXiv 2505.13430)."""
    if not train_scales(loaded.model):
        raise ValueError("--tune_scales trains the scales of quantised weights, and there are none: give --load_4bit")
    if settings.blocks is not None:
        train_blocks(loaded.model, settings.blocks)
    return loaded


@TUNERS.register("lora")
def tune_lora(loaded: LoadedModel, settings: TuningSettings) -> LoadedModel:
    """Train low-rank updates of the query and value projections, or others (Hu et al. 2022), without dropout.

    W x  becomes  W x + (lora_alpha / lora_r) B A x,  A [r, in] random, B [out, r] zero at the start.
    """
    with torch.no_grad():
        towers = unseen_towers(loaded.model, loaded.tokenizer)
    targets = _stream(loaded.model) if settings.stream else lora_targets(loaded.model, towers)
    named = [(name, m) for name, m in loaded.model.named_modules() if {name, name.rsplit(".", 1)[-1]} & {*targets}]
    reached = [(name, m) for name, m in named if not inside(name, towers)]
    if len(reached) < len(named):
        logger.info("text does not reach %s: no LoRA there", listed(towers))
    if settings.blocks is not None:
        blocks = find_blocks(loaded.model)
        numbers = chosen(settings.blocks, len(blocks))
        reached = [(name, m) for name, m in reached if blocks.number(name) in numbers]
    layers = [m for _, m in reached]
    if len(layers) < len(named):
        targets = tuple(name for name, _ in reached)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        fan_in_fan_out=all(isinstance(m, Conv1D) for m in layers),
    )
    return dataclasses.replace(loaded, model=_with_adapter(loaded.model, config))


@TUNERS.register("prefix")
def tune_prefix(loaded: LoadedModel, settings: TuningSettings) -> LoadedModel:
    """Train keys and values that stand before every layer's own (Li & Liang 2021).

    The prefix takes the first positions: rows may be `num_prefix` tokens shorter than the model's positions.
    """
    length = settings.num_prefix
    if settings.prefix_from_activations and settings.reparametrise:
        raise ValueError("a prefix made by an MLP cannot start from activations: choose one of the two")
    text_config = loaded.model.config.get_text_config()
    tokens = torch.zeros((1, length), dtype=torch.long)
    if settings.prefix_from_activations:
        tokens = torch.randint(0, text_config.vocab_size, (1, length))
    # The cache tells the shapes too: what configurations call them differs by family.
    cache = _keys_and_values(loaded.model, tokens)
    _, heads, _, width = cache[0][0].shape
    config = PrefixTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        prefix_projection=settings.reparametrise,
        encoder_hidden_size=PREFIX_MLP_WIDTH,
        num_layers=len(cache),
        num_attention_heads=heads,
        token_dim=heads * width,
    )
    tuned = _with_adapter(loaded.model, config)
    if settings.prefix_from_activations:
        initialize_kv_prefix_from_past_key_values(tuned, past_key_values=cache)
    positions = getattr(text_config, "max_position_embeddings", None) or loaded.max_length + length
    return dataclasses.replace(loaded, model=tuned, max_length=min(loaded.max_length, positions - length))


def _stream(model: PreTrainedModel) -> tuple[str, ...]:
    return tuple(one.name.removesuffix(".weight") for one in find_stream(model).projections)


def lora_targets(model: PreTrainedModel, towers: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the modules LoRA is put on: query and value projections, or the one projection that makes both.

    towers: parts of the model that do not count (see `unseen_towers`). Raises ValueError, with the names that were
    looked for, for a model that has none of them.
    """
    found = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules() if not inside(name, towers)}
    for pair in QUERY_AND_VALUE:
        if found.issuperset(pair):
            return pair
    known = PEFT_TARGETS.get(model.config.model_type, ())
    candidates = [(known,) if isinstance(known, str) else tuple(known), *((name,) for name in FUSED_PROJECTIONS)]
    for names in candidates:
        if names and found.issuperset(names):
            logger.info(
                "%s has no separate query and value projections: LoRA goes on %s", _kind(model), ", ".join(names)
            )
            return names
    looked = ["/".join(pair) for pair in QUERY_AND_VALUE] + list(FUSED_PROJECTIONS)
    raise ValueError(
        f"LoRA does not know the attention of {_kind(model)}: it has no modules named {', '.join(looked)}; "
        "tune all parameters, or a prefix"
    )


def untie(model: PreTrainedModel) -> bool:
    """Give the head a copy of the input embedding's weights where it shares them; whether it did share them.

    The configuration says so from then on: a saved model is loaded with both.
    """
    head, embedding = _head(model), cast("nn.Embedding", model.get_input_embeddings())
    if head.weight is not embedding.weight:
        return False
    head.weight = nn.Parameter(embedding.weight.detach().clone())
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = model.get_expanded_tied_weights_keys(all_submodels=True)
    return True


def merge_lora(model: nn.Module) -> PreTrainedModel:
    """Add LoRA's updates to the weights, in place, and give back the plain model; raises ValueError for others."""
    if not isinstance(model, PeftModel) or model.peft_type != "LORA":
        raise ValueError("only LoRA can be merged into the weights: leave --merge_lora out")
    return cast("PreTrainedModel", model.merge_and_unload(safe_merge=True))  # type: ignore[operator]


@torch.no_grad()
def _keys_and_values(model: PreTrainedModel, tokens: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every layer's keys and values, [1, heads, N, width] each, for tokens [1, N]."""
    model.eval()
    tokens = tokens.to(model.device)
    cache = getattr(model(tokens, attention_mask=torch.ones_like(tokens), use_cache=True), CACHE, None)
    found = [] if cache is None else cache.layers
    layers = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in found]
    shapes = {None if part is None else tuple(part.shape) for layer in layers for part in layer}
    if len(shapes) != 1 or None in shapes:
        raise ValueError(
            f"prefix-tuning needs keys and values of one shape in all layers, which {_kind(model)} has not: use LoRA"
        )
    return layers  # type: ignore[return-value]


def _refuse_quantised(model: PreTrainedModel) -> None:
    # Quantised tensors may call themselves floating-point: only the loader's mark tells.
    if getattr(model, "is_quantized", False):
        or_scales = ", or their scales (--tune_scales)" if has_scales(model) else ""
        raise ValueError(
            f"quantised weights cannot be trained: train an adapter over them (--lora or --prefix_tuning){or_scales}"
        )


def _head(model: PreTrainedModel) -> nn.Linear:
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{_kind(model)} has no language-model head to train")
    return cast("nn.Linear", head)


def _kind(model: PreTrainedModel) -> str:
    return type(model).__name__


def _with_adapter(model: PreTrainedModel, config: PeftConfig) -> PreTrainedModel:
    """PEFT's wrapper, in evaluation mode; it passes on what it does not have itself, and so serves as the model."""
    with warnings.catch_warnings():
        # PEFT 0.21 asks for an attribute that transformers 5.24 has renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        if isinstance(config, PrefixTuningConfig) and config.prefix_projection:
            config.base_model_name_or_path = model.name_or_path
            return cast("PreTrainedModel", PrefixMLPModel(model, config).eval())
        return cast("PreTrainedModel", get_peft_model(model, config).eval())
