"""Parts of a model that text never reaches: towers for images and sound, what joins them to the text, blocks for both.

A loss on text does not see their weights: LoRA there learns nothing, and MeZO would only shake them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from justforward.models.causality import plain_tokens


def unseen_towers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Names of the parts that a forward pass on text neither calls nor, where gradients are on, depends on.

    Experts do not count: which of them are called differs from text to text.
    """
    called: set[nn.Module] = set()
    hooks = [part.register_forward_pre_hook(lambda module, _: called.add(module)) for part in model.modules()]
    try:
        ids = torch.tensor([plain_tokens(model, tokenizer, 2)], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    used = {id(p) for part in called for p in part.parameters(recurse=False)} | _leaves(logits)
    names = {part: name for name, part in model.named_modules()}
    found: list[str] = []
    for part in _parts(model):
        unseen = called.isdisjoint(part.modules()) and used.isdisjoint(map(id, part.parameters()))
        if unseen and any(True for _ in part.parameters()) and not inside(names[part], found):
            found.append(names[part])
    return found


def inside(name: str, towers: Sequence[str]) -> bool:
    """Whether a module or a parameter belongs to one of some towers."""
    return any(name == tower or name.startswith(f"{tower}.") for tower in towers)


def _parts(model: PreTrainedModel) -> Iterator[nn.Module]:
    """What the models inside a model are made of, blocks one by one, and what these are made of; the outer first.

    No deeper: an expert is called by some texts, and what makes long texts shorter by long ones.
    """
    for owner in model.modules():
        if isinstance(owner, PreTrainedModel):
            for child in owner.children():
                for part in child if isinstance(child, nn.ModuleList) else [child]:
                    yield part
                    yield from part.children()


def _leaves(value: Tensor) -> set[int]:
    """The parameters that a value is computed from, by id: the ends of its autograd graph."""
    todo, seen, leaves = [value.grad_fn], set(), set()
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            leaves.add(id(getattr(node, "variable", None)))  # only an end has one
            todo += [before for before, _ in node.next_functions]
    return leaves
