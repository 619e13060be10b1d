"""Whether a model is causal: a later token must not change the logits of an earlier one.

Masked and encoder models load as causal ones do, and score with what they are to predict in view. No list of families
is needed: three short rows tell.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EARLIER, LATER = 2, 6
"""Tokens of the rows; the later ones are all the same token, which moves an average over them the furthest."""

TOLERANCE = {torch.float32: 1e-4}
TOLERANCE_16 = 4e-3
"""How much of the change of later logits an earlier one may show, by dtype; random masked models show 8e-3 of it or
more in any dtype, causal ones none (bench/causality.py)."""

MOST_WEIGHTS, MOST_ROWS = 60_000_000, 512
"""Of the model that `may_be_causal` makes."""


def plain_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, number: int) -> list[int]:
    """Different tokens of text, spread over the model's vocabulary: none that stands for an image or a control."""
    embedding = model.get_input_embeddings()
    rows = embedding.weight.shape[0]  # type: ignore[union-attr]
    special = set() if tokenizer is None else {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    special |= {
        value
        for key, value in model.config.to_dict().items()
        if key.endswith(("token_id", "token_index"))
        if isinstance(value, int)
    }
    plain = [token for token in range(rows) if token not in special] or [0]
    return [plain[(2 * i + 1) * len(plain) // (2 * number)] for i in range(number)]


@torch.no_grad()
def change_of_earlier(model: PreTrainedModel, tokens: Sequence[int]) -> tuple[float, float, float]:
    """Largest change of earlier logits by other later tokens; of later logits; of earlier ones by nothing but noise.

    tokens: EARLIER + 2 of them.
    """
    start, (one, other) = list(tokens[:EARLIER]), tokens[EARLIER : EARLIER + 2]
    rows = [start + [last] * LATER for last in (one, other, one)]
    ids = torch.tensor(rows, device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits.float()
    moved, noise = ((logits[0] - logits[i]).abs().amax(-1) for i in (1, 2))
    return moved[:EARLIER].max().item(), moved[EARLIER:].max().item(), noise.max().item()


def is_causal(model: PreTrainedModel, tokens: Sequence[int]) -> bool:
    """Whether earlier logits stay as they are; logits that are not numbers tell nothing, and pass."""
    earlier, later, noise = change_of_earlier(model, tokens)
    return not earlier > 4 * noise + TOLERANCE.get(model.dtype, TOLERANCE_16) * later


def may_be_causal(config: PreTrainedConfig) -> bool:
    """Whether a random model of this configuration, cut to one block and few words, is causal.

    True also where none can be made that is small: then only the weights can tell (`is_causal`).
    """
    small = copy.deepcopy(config)
    try:
        small.num_hidden_layers, small.vocab_size = 1, MOST_ROWS
        with torch.device("meta"):
            size = AutoModelForCausalLM.from_config(small).num_parameters()
        if size > MOST_WEIGHTS:
            return True
        with torch.random.fork_rng(devices=[]):
            model = AutoModelForCausalLM.from_config(small).eval()
        return is_causal(model, plain_tokens(model, None, EARLIER + 2))
    except Exception:  # what families ask of their sizes cannot be foreseen
        return True
