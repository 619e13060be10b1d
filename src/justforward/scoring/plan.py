"""Token rows -> the least computation that scores them (design.md, "The least computation").

A row's last token is never fed: its probability is read from the logits before it. So rows that differ only in
their last token are one sequence. Rows that share a beginning are packed behind it as a tree: one sequence in which
a token attends to its own ancestors only. A beginning common to *all* rows is computed once into a KV cache; what
follows it is packed as a tree too, whose root is the cache.
Sequences are sorted by length and cut into batches under a token budget, longest first, so that running out of memory
shows at once, and so that padding and passes together cost least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from justforward.scoring.prompts import Row

MIN_SHARED_PREFIX = 16
"""Tokens that all rows must share before a KV cache pays for its own forward pass."""

PASS_TOKENS = 64
"""What one more forward pass costs, in tokens: padding is worth less than that."""

FEW_SHAPES_PASS_TOKENS = 512
"""The same where shapes are to be few (bench/shapes.py): more passes would be of more shapes."""

FEW_SHAPES_ROWS = 4
"""So many sequences, or a multiple, make a pass there."""

MAX_TREE_GROWTH = 8
"""A packed tree may be this many times longer than its longest row: attention over it is quadratic."""


class Piece(NamedTuple):
    """The part from `start` on of `fed`, all the tokens of a row that are fed."""

    fed: tuple[int, ...]
    start: int


@dataclass
class Packed:
    """Rows packed into one token sequence of n fed tokens.

    tokens, depths: [n] ids and position ids; ancestors: [n, n] bool, or None where the sequence is a plain chain;
    reads: for every scored token (position of the logits to read, token id, flat output index); owner: whose it is,
    where rows have owners; pieces: the rows' parts that it is made of, one after the other.
    """

    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    ancestors: np.ndarray | None = None
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    owner: int = 0
    pieces: list[Piece] = field(default_factory=list)


@dataclass
class Forward:
    """One forward pass: arrays of B sequences padded on the right to N tokens.

    input_ids, position_ids: [B, N] int64; mask: [B, N, N] bool (True: attends) or None for plain causal attention;
    keep: [B, N] bool, the positions whose logits are needed (K of them, in row-major order);
    source, target, output: [T] for each scored token its index among the K, its token id, its flat output index;
    owner: [B] int64, whose each sequence is; pieces: what each sequence is made of.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    mask: np.ndarray | None
    keep: np.ndarray
    source: np.ndarray
    target: np.ndarray
    output: np.ndarray
    owner: np.ndarray
    pieces: list[list[Piece]]

    def halves(self) -> tuple[Forward, Forward]:
        """The same work in two passes, each over half of the sequences; there must be two or more."""
        middle = len(self.input_ids) // 2
        first = self.source < self.keep[:middle].sum()
        return self._part(slice(None, middle), first), self._part(slice(middle, None), ~first)

    def _part(self, rows: slice, scored: np.ndarray) -> Forward:
        mask = None if self.mask is None else self.mask[rows]
        source = self.source[scored]
        # The sequences of a part are neighbours, and so are their positions among those that are kept.
        return Forward(
            *(self.input_ids[rows], self.position_ids[rows], mask, self.keep[rows]),
            *(source - source.min(), self.target[scored], self.output[scored], self.owner[rows], self.pieces[rows]),
        )


@dataclass
class Plan:
    """All forward passes that score `lengths.sum()` tokens of `len(lengths)` rows.

    lengths: [R] int64, scored tokens per row; prefix: token ids that all sequences continue (on a KV cache);
    fed_tokens: tokens fed, padding included; plain_tokens: what one row at a time would feed; batched: False where
    every forward is one row, since the model does not take several at once.
    """

    lengths: np.ndarray
    prefix: tuple[int, ...]
    forwards: list[Forward]
    fed_tokens: int
    plain_tokens: int
    batched: bool = True

    @property
    def has_tree(self) -> bool:
        """Whether any forward needs a tree mask."""
        return any(f.mask is not None for f in self.forwards)


def make_plan(
    rows: Sequence[Row],
    *,
    token_budget: int,
    share_prefix: bool = True,
    pack_trees: bool = True,
    pass_tokens: int = PASS_TOKENS,
    owners: Sequence[int] | None = None,
    few_shapes: bool = False,
) -> Plan:
    """Plan the forward passes that score `rows`, in any order, with at most `token_budget` tokens in each.

    A sequence longer than the budget gets a forward of its own. `share_prefix=False` uses no KV cache;
    `pack_trees=False` feeds every distinct row by itself, unless it is the beginning of another; `pass_tokens` is the
    cost of a forward, in tokens; rows of different `owners` share no sequence; `few_shapes` makes few passes, padded to
    `rounded` lengths, where no prefix is cached.
    """
    prefix = _common_prefix(rows) if share_prefix else ()
    sequences = _pack(rows, _Packer(len(prefix), pack_trees, token_budget), owners)
    few_shapes = few_shapes and not prefix
    return _plan(rows, prefix, _batches(sequences, token_budget, pass_tokens, few_shapes), few_shapes)


def plan_alone(rows: Sequence[Row]) -> Plan:
    """A plan that feeds every row by itself; rows that differ in their last token alone are one."""
    sequences = _pack(rows, _Packer(0, pack_trees=False, token_budget=1, pack_chains=False))
    return replace(_plan(rows, (), [[sequence] for sequence in sequences]), batched=False)


def _pack(rows: Sequence[Row], packer: _Packer, owners: Sequence[int] | None = None) -> list[Packed]:
    offsets = np.concatenate([[0], np.cumsum(_lengths(rows))])[:-1]
    sequences: list[Packed] = []
    owned = owners or [0] * len(rows)
    owner = 0
    for i in sorted(range(len(rows)), key=lambda i: (owned[i], rows[i].tokens[:-1])):
        if packer.branches and (owned[i] != owner or not packer.add(rows[i], int(offsets[i]))):
            sequences.append(packer.finish(owner))
        if not packer.branches:
            packer.add(rows[i], int(offsets[i]))
        owner = owned[i]
    if rows:
        sequences.append(packer.finish(owner))
    return sequences


def _plan(rows: Sequence[Row], prefix: tuple[int, ...], batches: list[list[Packed]], few_shapes: bool = False) -> Plan:
    forwards = [_pad(batch, few_shapes) for batch in batches]
    return Plan(
        lengths=_lengths(rows),
        prefix=prefix,
        forwards=forwards,
        fed_tokens=len(prefix) + sum(f.input_ids.size for f in forwards),
        plain_tokens=sum(len(r.tokens) for r in rows),
    )


def _lengths(rows: Sequence[Row]) -> np.ndarray:
    return np.array([len(r.tokens) - r.start for r in rows], dtype=np.int64)


def _lcp(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences, by bisection on slices (they compare in C)."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _common_prefix(rows: Sequence[Row]) -> tuple[int, ...]:
    """Tokens that all rows begin with and that no row scores, where a KV cache of them pays; else ()."""
    if len(rows) < 2:
        return ()
    first, last = min(r.tokens for r in rows), max(r.tokens for r in rows)
    # Every row keeps at least one token to feed, whose logits give its first scored token.
    n = min(_lcp(first, last), min(r.start for r in rows) - 1)
    distinct = len({r.tokens[:-1] for r in rows})
    return first[:n] if n >= MIN_SHARED_PREFIX and distinct > 1 else ()


class _Packer:
    """Packs rows, given in lexicographic order of their fed tokens, into one sequence while that saves tokens."""

    def __init__(self, prefix_length: int, pack_trees: bool, token_budget: int, *, pack_chains: bool = True):
        self.prefix_length, self.pack_trees, self.token_budget = prefix_length, pack_trees, token_budget
        self.pack_chains = pack_chains
        self._reset()

    def _reset(self) -> None:
        self.sequence = Packed()
        self.branches: list[tuple[int, list[int]]] = []  # (tokens shared with the branch before, path of nodes)
        self.fed: tuple[int, ...] = ()
        self.longest = 0

    def add(self, row: Row, offset: int) -> bool:
        """Take the row in, or return False where it should start a sequence of its own."""
        fed = row.tokens[self.prefix_length : -1]
        shared = _lcp(self.fed, fed)
        if self.branches:
            grows = len(self.sequence.tokens) + len(fed) - shared
            limit = min(MAX_TREE_GROWTH * max(self.longest, len(fed)), self.token_budget)
            # The row before is this one, or a beginning of it.
            chain = shared == len(self.fed) and self.is_chain and (self.pack_chains or shared == len(fed))
            # Behind a cached prefix, rows of one tree read one copy of it; batched they would need a copy each.
            worth = 2 * shared >= len(fed) or grows <= self.prefix_length
            if not chain and not (self.pack_trees and worth and grows <= limit):
                return False
        path = self.branches[-1][1][:shared] if self.branches else []
        sequence = self.sequence
        start = len(sequence.tokens)
        path = path + list(range(start, start + len(fed) - shared))
        sequence.tokens.extend(fed[shared:])
        if shared < len(fed):
            sequence.pieces.append(Piece(row.tokens[:-1], self.prefix_length + shared))
        sequence.depths.extend(range(self.prefix_length + shared, self.prefix_length + len(fed)))
        self.branches.append((shared, path))
        first = row.start - self.prefix_length
        sequence.reads.extend(
            (path[first + j - 1], token, offset + j) for j, token in enumerate(row.tokens[row.start :])
        )
        self.fed, self.longest = fed, max(self.longest, len(fed))
        return True

    @property
    def is_chain(self) -> bool:
        return len(self.sequence.tokens) == self.longest

    def finish(self, owner: int) -> Packed:
        """The packed sequence; the packer starts anew."""
        sequence = self.sequence
        sequence.owner = owner
        if not self.is_chain:
            n = len(sequence.tokens)
            ancestors = np.zeros((n, n), dtype=bool)
            for shared, path in self.branches:
                new = np.array(path[shared:], dtype=np.int64)
                if len(new):
                    ancestors[np.ix_(new, np.array(path))] = np.tri(len(path), dtype=bool)[shared:]
            sequence.ancestors = ancestors
        self._reset()
        return sequence


def _batches(sequences: list[Packed], token_budget: int, pass_tokens: int, few_shapes: bool) -> list[list[Packed]]:
    batches: list[list[Packed]] = []
    cost, unit = (FEW_SHAPES_PASS_TOKENS, FEW_SHAPES_ROWS) if few_shapes else (pass_tokens, 1)
    for tree in (True, False):
        kind = [s for s in sequences if (s.ancestors is not None) == tree]
        kind.sort(key=lambda s: -len(s.tokens))
        start = 0
        for end in _cuts([_length(s, few_shapes) for s in kind], token_budget, cost, unit):
            batches.append(kind[start:end])
            start = end
    return batches


def _cuts(lengths: list[int], token_budget: int, pass_tokens: int, unit: int) -> list[int]:
    """Where to cut lengths, longest first, into batches: the least of (longest x count + pass_tokens), summed up.

    unit: batches have a multiple of so many, but for the last one, and where the budget takes fewer.
    """
    n = len(lengths)
    best, ends = [0] * (n + 1), [n] * n
    for i in range(n - 1, -1, -1):
        longest = max(1, lengths[i])
        last = min(n, i + max(1, token_budget // longest))
        possible = [j for j in range(i + 1, last + 1) if j == n or (j - i) % unit == 0] or [last]
        cost, ends[i] = min((best[j] + longest * (j - i), -j) for j in possible)
        best[i], ends[i] = cost + pass_tokens, -ends[i]
    cuts: list[int] = []
    at = 0
    while at < n:
        at = ends[at]
        cuts.append(at)
    return cuts


def rounded(count: int) -> int:
    """The next multiple of 16, or from 128 on of an eighth of the next power of two: four numbers for each doubling."""
    step = max(16, (1 << (count - 1).bit_length()) // 8)
    return -(-count // step) * step


def _length(sequence: Packed, few_shapes: bool) -> int:
    return rounded(len(sequence.tokens)) if few_shapes else len(sequence.tokens)


def _pad(batch: list[Packed], few_shapes: bool) -> Forward:
    n = _length(batch[0], few_shapes)
    input_ids = np.zeros((len(batch), n), dtype=np.int64)
    position_ids = np.zeros((len(batch), n), dtype=np.int64)
    keep = np.zeros((len(batch), n), dtype=bool)
    mask = None
    if batch[0].ancestors is not None:
        # Padding attends to itself, so that no softmax is over nothing.
        mask = np.repeat(np.eye(n, dtype=bool)[None], len(batch), axis=0)
    for b, s in enumerate(batch):
        m = len(s.tokens)
        input_ids[b, :m], position_ids[b, :m] = s.tokens, s.depths
        position_ids[b, m:] = s.depths[-1]
        keep[b, [position for position, _, _ in s.reads]] = True
        if mask is not None:
            assert s.ancestors is not None
            mask[b, :m, :m] = s.ancestors
    rank = np.cumsum(keep.ravel()).reshape(keep.shape) - 1
    reads = [(rank[b, position], token, output) for b, s in enumerate(batch) for position, token, output in s.reads]
    source, target, output = (np.array(column, dtype=np.int64) for column in zip(*reads, strict=True))
    owner = np.array([s.owner for s in batch], dtype=np.int64)
    pieces = [s.pieces for s in batch]
    return Forward(input_ids, position_ids, mask, keep, source, target, output, owner, pieces)
