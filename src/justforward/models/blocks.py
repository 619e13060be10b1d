"""The blocks of a decoder, which one after the other add to the hidden states, and a range of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

RANGE = re.compile(r"(-?\d+)?:(-?\d+)?")


@dataclass(frozen=True)
class Blocks:
    """name: of the list within its model, with which its parameters' names begin; modules: the blocks, in order."""

    name: str
    modules: nn.ModuleList

    def __len__(self) -> int:
        return len(self.modules)

    def number(self, name: str) -> int | None:
        """The number of the block that a module or a parameter is in; None for what is in none."""
        if not name.startswith(f"{self.name}."):
            return None
        return int(name[len(self.name) + 1 :].split(".", 1)[0])


def find_blocks(model: Any) -> Blocks:
    """A language model's blocks: the heaviest list of as many modules as its configuration has hidden layers.

    Raises ValueError, in one line, where there is no such list.
    """
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if depth is None or not lists:
        raise ValueError(
            f"--train_blocks: {type(model).__name__} has no list of {depth or 'its'} blocks: leave it out, and train "
            "all of the model"
        )
    return Blocks(*max(lists, key=lambda pair: sum(p.numel() for p in pair[1].parameters())))


def chosen(words: str, count: int) -> range:
    """The numbers of the blocks that "A:B" names among `count`, as slices do: "-3:" is the last three.

    Raises ValueError, in one line, where that is no range of them.
    """
    match = RANGE.fullmatch(words)
    ends = [None if end is None else int(end) for end in match.groups()] if match else [0, 0]
    first, last, _ = slice(*ends).indices(count)
    if first >= last:
        raise ValueError(
            f"argument --train_blocks: '{words}' is no range of the model's {count} blocks: give A:B, such as "
            f"{max(0, count - 3)}:{count}, or -3: for the last three"
        )
    return range(first, last)
