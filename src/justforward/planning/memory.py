"""What a job needs, from the sizes of its model: bytes of memory and floating-point operations, as formulas.

T tokens are fed in one forward pass: all of a batch, in passes of at most the token budget, but never less than a row.
w is the number of bytes of a number in the model's dtype. Quantities are peaks of what is held at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from justforward.optim.directions.base import piece
from justforward.optim.probes.choose import SMALL
from justforward.optim.probes.just_in_time import VERIFIED
from justforward.planning.shape import ModelShape
from justforward.scoring.engine import PAIR_TOKENS, TOKEN_BUDGET
from justforward.scoring.generation import KEPT_TOKENS
from justforward.scoring.plan import MAX_TREE_GROWTH

LORA_RANK, PREFIX = 8, 5
"""As `mezo.sh` and `finetune.sh` tune."""

NEW_TOKENS = 50
"""Generated per prompt."""

LINK = 16e9
"""Bytes per second from main memory to a GPU (PCIe 4, 16 lanes, about half of its peak). Not measured."""

GPU_OVERHEAD = 600 << 20
"""Bytes of a GPU that the driver's context, the libraries' code and their workspaces take. Not measured."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is fed: `rows` of `tokens` each per step, `scored` tokens of each row scored, `width` bytes per number.

    device: "cpu" or "cuda"; demonstrations: of in-context learning; longest: the most tokens that a row may have.
    """

    rows: int = 16
    tokens: int = 256
    scored: int = 1
    width: int = 2
    device: str = "cpu"
    demonstrations: int = 32
    longest: int = 2048

    @property
    def budget(self) -> int:
        """Most tokens of one pass, unless a row has more."""
        return max(TOKEN_BUDGET[self.device], self.tokens)

    def cut(self, rows: int) -> Load:
        """The first of the passes that `rows` are fed in."""
        return replace(self, rows=max(1, min(rows, self.budget // self.tokens)))

    @property
    def fed(self) -> int:
        """All tokens."""
        return self.rows * self.tokens


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one kind of job at its peak.

    weights: the model's; training: adapters, gradients, optimiser states, copies of weights; activations; logits;
    cache: keys and values; scratch: perturbed weights; overhead: program and libraries.
    """

    weights: int = 0
    training: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    scratch: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, field.name) for field in fields(self))

    def spread(self, devices: int) -> Memory:
        """The share of one of several devices: what goes with weights and layers is divided, a pass is not."""
        divided = {name: -(-getattr(self, name) // devices) for name in ("weights", "training", "cache")}
        return replace(self, **divided)


def activations(shape: ModelShape, load: Load) -> int:
    """Bytes of the block that holds most during a forward pass without gradients.

    Blocks run one after the other, and a block frees what it no longer needs. The model holds the embeddings of a token
    (h from each table) and what the block started from (h). In the feed-forward a token holds its residual (h), what
    the first matrices have written (up) and the activation (f); a gated one holds the normed input (h) too, which both
    of its matrices read. In the attention it holds residual and normed input (2 h), queries,
    keys and values (q + 2 kv), their rotated copies (q + kv) where positions rotate, the output and its contiguous
    copy (2 q). The attention itself is computed in tiles: no matrix of tokens times tokens.
    """
    gated = shape.up > shape.feed_forward
    feed_forward = shape.hidden * (2 if gated else 1) + shape.up + shape.feed_forward
    attention = 2 * shape.hidden + 4 * shape.query + 3 * shape.key_value
    return load.fed * (_held(shape) + max(feed_forward, attention)) * load.width


def _held(shape: ModelShape) -> int:
    """Width of what the model itself holds of a token while a block runs."""
    return shape.hidden * (shape.embeddings + 1)


def logits(shape: ModelShape, load: Load) -> int:
    """Bytes of a pass's logits in float32, kept at scored positions only, and of their exponentials in log-sum-exp."""
    return 2 * 4 * load.rows * load.scored * shape.vocabulary


def forward(shape: ModelShape, load: Load, *, normalise: bool = True) -> Memory:
    """Weights and the largest of the passes: its blocks or its logits, whichever is more, for they follow each other.

    normalise: False where only the options' logits are computed, a few numbers per row.
    """
    blocks, head = activations(shape, load), logits(shape, load) if normalise else 0
    last = load.fed * (_held(shape) + shape.hidden) * load.width  # and the last norm's output
    memory = Memory(weights=shape.parameters * load.width, activations=blocks)
    return memory if blocks >= head + last else replace(memory, activations=last, logits=head)


def zero_shot(shape: ModelShape, load: Load) -> Memory:
    """Evaluation: full passes, whatever the batch of training is.

    Options that are texts share their prompt in a tree, whose mask has a number and a boolean per token and token.
    """
    passed = load.cut(TOKEN_BUDGET[load.device])
    memory = forward(shape, passed)
    mask = passed.fed * passed.tokens * (load.width + 1) if load.scored > 1 else 0
    return replace(memory, activations=memory.activations + mask)


def with_demonstrations(load: Load) -> Load:
    """Rows with demonstrations as long as themselves, up to the longest row."""
    return replace(load, tokens=min(load.longest, (load.demonstrations + 1) * load.tokens))


def shared_demonstrations(shape: ModelShape, load: Load) -> Memory:
    """Evaluation behind one set of demonstrations: its keys and values are computed once.

    Rows behind them are packed into trees, up to MAX_TREE_GROWTH times as long as a row and as long as the set. The
    keys and values are repeated for each tree of a pass, and every layer adds those of its tokens. A tree's mask has a
    number and a boolean for each token and what it may attend to.
    """
    shared = max(1, with_demonstrations(load).tokens - load.tokens)
    tree = load.tokens * max(1, min(MAX_TREE_GROWTH, shared // load.tokens))
    trees = max(1, TOKEN_BUDGET[load.device] // tree)
    cache = key_values(shape, shared + trees * (shared + tree), load.width)
    memory = forward(shape, replace(load, rows=trees * tree // load.tokens))
    mask = trees * tree * (shared + tree) * (load.width + 1)
    return replace(memory, activations=memory.activations + mask, cache=cache)


def generation(shape: ModelShape, load: Load) -> Memory:
    """Evaluation by generating: a batch of prompts, with keys and values for all tokens, the new ones too.

    The prompts are one pass; logits are those of each row's last token.
    """
    length = load.tokens + NEW_TOKENS
    rows = max(1, KEPT_TOKENS[load.device] // length)
    memory = forward(shape, replace(load, rows=rows, scored=1))
    return replace(memory, cache=key_values(shape, rows * length, load.width))


def key_values(shape: ModelShape, tokens: int, width: int) -> int:
    """Bytes of the keys and values of so many tokens in all layers."""
    return 2 * shape.layers * shape.key_value * tokens * width


def adapter(shape: ModelShape, method: str) -> int:
    """Number of trained weights: rank times (inputs + outputs) of each projection, or a prefix's keys and values."""
    if method == "lora":
        return LORA_RANK * (shape.lora_widths or 0)
    if method == "prefix":
        return 2 * shape.layers * shape.key_value * PREFIX
    return shape.parameters


def passes(load: Load) -> Load:
    """The largest pass of a MeZO step: doubled, for both signs at once, where that is faster."""
    first = load.cut(load.rows)
    doubled = load.fed <= PAIR_TOKENS[load.device]
    return replace(first, rows=2 * first.rows) if doubled else first


def mezo(shape: ModelShape, load: Load, method: str = "full") -> Memory:
    """A MeZO step: a forward pass, and perturbed weights of one module at a time.

    Scratch holds the largest piece that is perturbed at once (of the head too, where all of its outputs are needed) and
    all small tensors (norms, biases), twice where both signs go in one pass; the first step copies up to VERIFIED bytes
    more to check itself. Trained weights of up to SMALL bytes, as adapters are, are copied instead for a probe that is
    not doubled. Adapters are float32. One-token options need no normaliser, other losses all logits.
    """
    passed, normalise = passes(load), load.scored > 1
    memory = forward(shape, passed, normalise=normalise)
    signs = passed.rows // load.cut(load.rows).rows
    width = load.width if method == "full" else 4
    trained = adapter(shape, method) * width
    linear = max(shape.linear, shape.head if normalise else 0)
    largest = max(shape.other, min(linear, piece(load.device, adapter(shape, method))))
    scratch = signs * (largest + shape.few) * width + min(VERIFIED, trained)
    if trained <= SMALL:
        scratch = trained if signs == 1 else min(scratch, 2 * trained)
    memory = replace(memory, scratch=scratch, training=shape.state if method == "full" else trained)
    if method == "prefix":  # the trained keys and values, repeated for each row, and every layer adds the row's own
        cached = passed.rows * (PREFIX + load.tokens)
        return replace(memory, cache=key_values(shape, cached, load.width))
    return memory


def guided(shape: ModelShape, load: Load, blocks: int) -> Memory:
    """A guided step in the last blocks: a forward pass, and what it tells of each scored position.

    In float32, twice where they are being put together: the error (h), what the layers that add to the stream read (q
    and f of each block), and the head's rows weighted by the probabilities (h). An update is made in pieces.
    """
    passed, normalise = load.cut(load.rows), load.scored > 1
    told = 2 * 4 * load.rows * load.scored * (2 * shape.hidden + blocks * (shape.query + shape.feed_forward))
    scratch = 2 * 4 * min(piece(load.device), shape.hidden * shape.feed_forward)
    return replace(forward(shape, passed, normalise=normalise), training=told, scratch=scratch)


def guided_flops(shape: ModelShape, load: Load, blocks: int) -> int:
    """Of a guided step behind kept states: a forward pass of the last blocks and the head, 1.2 of them with probes."""
    upper = replace(shape, multiplied=shape.multiplied * blocks // shape.layers, layers=blocks)
    return forward_flops(upper, load, normalise=load.scored > 1) * 6 // 5


def four_bits(shape: ModelShape, load: Load) -> Memory:
    """MeZO on LoRA over matrices of 4 bits: 64 weights share a float32 scale; all else is of the load's width.

    A module's weights are made whole again while it computes, once as numbers and once as what is multiplied.
    """
    quantised = shape.blocks // 2 + shape.blocks // 64 * 4
    needed = mezo(shape, load, "lora")
    weights = (shape.parameters - shape.blocks) * load.width + quantised
    return replace(needed, weights=weights, scratch=needed.scratch + 2 * shape.module * load.width)


def offloaded(shape: ModelShape, load: Load) -> Memory:
    """MeZO with the weights in main memory: the GPU holds those of the module that computes and of the next.

    Embedding and head compute in main memory, unless all outputs of the head are needed.
    """
    largest = max(shape.module, shape.head if load.scored > 1 else 0)
    return replace(mezo(shape, load), weights=2 * largest * load.width)


def saved(shape: ModelShape, load: Load, *, all_weights: bool) -> int:
    """Bytes that the forward pass keeps for the backward pass.

    A token keeps in every block the inputs of its two norms (2 h), queries, keys, values and the attention's output
    (2 q + 2 kv), and what its activation function needs: ReLU its output (f), a smooth one its input (up), a gate both.
    Where all weights are trained, matrices keep their inputs: the norms' outputs (2 h), the output of a smooth function
    or the gated product (f; ReLU's is kept anyway); and a norm written as separate operations its normalised values
    (2 h). LoRA keeps one norm's output (h). Dropout keeps its mask (2 h), in bytes on a GPU and in numbers on a CPU.
    Norms and residuals are float32. In mixed precision (on a GPU) the rest is 16-bit.
    """
    inner = 4 if load.device == "cpu" else 2
    gated = shape.up > shape.feed_forward
    wide = shape.feed_forward if not shape.smooth else shape.up + shape.feed_forward * (gated + all_weights)
    float32 = shape.hidden * (4 if shape.unfused_norms and all_weights else 2)
    other = 2 * shape.query + 2 * shape.key_value + wide + shape.hidden * (2 if all_weights else 1)
    masks = 2 * shape.hidden * (4 if load.device == "cpu" else 1) if shape.dropout else 0
    return load.fed * shape.layers * (4 * float32 + inner * other + masks)


def backpropagation(shape: ModelShape, load: Load, method: str = "full") -> Memory:
    """Fine-tuning by backpropagation with Adam, on float32 weights as `finetune.sh` does.

    A trained weight has two moments and a gradient. The backward pass begins with all that was saved, the head's
    gradient, and what a block at work takes; it ends with all gradients, the embedding's last. A tied one is then the
    sum of two: both and the sum are held. The larger of begin and end counts. Logits stand in float32 with their
    exponentials and their gradient. Mixed precision (on a GPU) keeps a 16-bit copy of every matrix until the backward
    pass has read it.
    """
    full = method == "full"
    trained = adapter(shape, method)
    copies = 0 if load.device == "cpu" else 2 * (shape.multiplied + shape.head)
    kept = saved(shape, load, all_weights=full) + activations(shape, replace(load, width=4))
    head = max(3 * 4 * load.rows * load.scored * shape.vocabulary, 4 * shape.head if full else 0)
    end = 4 * trained + (2 * 4 * shape.head if full and shape.tied else 0)
    return Memory(
        weights=4 * shape.parameters,
        training=(0 if full else 4 * trained) + 8 * trained + copies + max(0, end - kept - head),
        activations=kept,
        logits=head,
    )


def forward_flops(shape: ModelShape, load: Load, *, normalise: bool = True) -> int:
    """Of one forward pass: two operations for each weight and token, the head's for scored positions alone.

    In the attention a token meets half of its row on average, with 2 operations per width of the queries for the score
    and 2 for the mean of the values.
    """
    matrices = 2 * shape.multiplied * load.fed
    attention = shape.layers * 4 * shape.query * load.fed * load.tokens // 2
    return matrices + attention + (2 * shape.head * load.rows * load.scored if normalise else 0)


def mezo_flops(shape: ModelShape, load: Load) -> int:
    """Of a MeZO step: two forward passes."""
    return 2 * forward_flops(shape, load, normalise=load.scored > 1)


def backpropagation_flops(shape: ModelShape, load: Load, method: str = "full") -> int:
    """Of a step of backpropagation: a forward pass, as much again for the gradients of activations, and, where all
    weights are trained, as much again for theirs.
    """
    return (3 if method == "full" else 2) * forward_flops(shape, load)


def draws(shape: ModelShape, load: Load, method: str = "full") -> int:
    """Numbers of z that a MeZO step draws: for each probe (once where both go in one pass), and for the update.

    Of embedding and head a probe draws the rows that it needs, which are few.
    """
    probed = shape.blocks if method == "full" else adapter(shape, method)
    return (1 if load.fed <= PAIR_TOKENS[load.device] else 2) * probed + adapter(shape, method)


def link_bytes(shape: ModelShape, load: Load) -> int:
    """Bytes of weights that an offloaded step moves to the GPU: the blocks, for each of two forward passes."""
    return 2 * shape.blocks * load.width
