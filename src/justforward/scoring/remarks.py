"""What is to be said about token rows: which were cut, which hold a token over a boundary or a control token's text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from justforward.scoring.tokens import spelt_in

if TYPE_CHECKING:
    from justforward.tasks.base import Sample


@dataclass
class Remarks:
    """About samples that were encoded, for rows of at most `limit` tokens; a sample with its options is one row.

    side: where rows are cut; lost: how many tokens each lost there; spanning: those where a token spans prompt and
    option; control: the control tokens that each spells and that stay text.
    """

    limit: int
    side: str = "left"
    lost: dict[int, int] = field(default_factory=dict)
    spanning: set[int] = field(default_factory=set)
    control: dict[int, set[str]] = field(default_factory=dict)

    def cut(self, sample: Sample, lost: int) -> None:
        """Note that a row of the sample lost so many tokens, none included."""
        self.lost[id(sample)] = max(lost, self.tokens_lost(sample))

    def tokens_lost(self, sample: Sample) -> int:
        """How many tokens were cut from the sample's row."""
        return self.lost.get(id(sample), 0)

    def kept_text(self, sample: Sample, texts: Sequence[str]) -> None:
        """Note the control tokens that these texts of the sample spell."""
        if spelt := {token for text in texts for token in spelt_in(text)}:
            self.control.setdefault(id(sample), set()).update(spelt)

    def lines(self, what: str = "rows") -> Iterator[str]:
        """A line for each thing that is to be said."""
        rows = f"of {len(self.lost)} {what}"
        if cut := [lost for lost in self.lost.values() if lost]:
            yield (
                f"{len(cut)} {rows} are longer than {self.limit} tokens and lose up to {max(cut)} on the {self.side}: "
                "raise --max_length, as far as the model has positions, or give shorter texts"
                + " or fewer demonstrations"
                * (self.side == "left")
            )
        if self.spanning:
            yield (
                f"in {len(self.spanning)} {rows} a token spans the end of the prompt and the start of an option: "
                "their options are scored from that token on"
            )
        if self.control:
            counts = Counter(sorted(token for tokens in self.control.values() for token in tokens))
            spelt = ", ".join(repr(token) for token, _ in counts.most_common(5)) + ", ..." * (len(counts) > 5)
            yield (
                f"{len(self.control)} {rows} spell control tokens ({spelt}): that stays text (markup = true in a "
                "task file makes tokens of it)"
            )


def cut_facts(lost: Iterable[int], prefix: str = "") -> dict[str, int]:
    """For a result file: how many rows were cut, and the most tokens that one lost; nothing where none was."""
    cut = [tokens for tokens in lost if tokens]
    return {f"{prefix}cut_rows": len(cut), f"{prefix}most_tokens_cut": max(cut)} if cut else {}
