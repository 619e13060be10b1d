"""The formulas against what torch holds: activations, tensors saved for the backward pass, caches, adapters."""

import dataclasses
import json
from typing import Any, cast

import pytest
import torch
from support.families import CONFIGS, PLAIN_CONFIGS, tiny
from support.golden import MODEL
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from bench.peak import allocator_peak
from justforward.compat import CACHE, TORCH, skeleton
from justforward.models.loading import LoadedModel, load
from justforward.models.tuning import TuningSettings, tune
from justforward.planning import memory as planning
from justforward.planning.memory import Load, Memory
from justforward.planning.shape import read_shape, shape_of
from justforward.scoring import ScoringEngine
from justforward.scoring.generation import KEPT_TOKENS
from justforward.scoring.prompts import Row

MIB = 1 << 20
SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 3000}
MODELS = {
    "opt": OPTConfig(**SIZES, ffn_dim=512, word_embed_proj_dim=128),
    "gelu": OPTConfig(**SIZES, ffn_dim=512, word_embed_proj_dim=128, activation_function="gelu"),
    "llama": LlamaConfig(**SIZES, intermediate_size=344, num_key_value_heads=2),
    "narrow": LlamaConfig(**SIZES, intermediate_size=16),
}
LOAD = Load(rows=16, tokens=32, width=4)


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(MODELS[request.param]).eval()


def rows_of(load):
    return [Row((*torch.randint(5, 290, (load.tokens,)).tolist(), 7), load.tokens) for _ in range(load.rows)]


@pytest.mark.parametrize("family", [*CONFIGS, *PLAIN_CONFIGS])
def test_weights_are_counted_without_any(family, tmp_path):
    """A folder with config.json alone tells what the model itself would."""
    model = tiny(family)
    model.config.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == []
    count = sum(p.numel() for p in model.parameters())
    shape = read_shape(str(tmp_path))
    assert shape.parameters == count
    assert 0 < shape.multiplied <= shape.blocks < count
    assert shape == shape_of(model)


def test_the_shape_of_opt_125m():
    with torch.device("meta"):
        shape = shape_of(skeleton(OPTConfig()))
    expected = {"parameters": 125_239_296, "layers": 12, "hidden": 768, "feed_forward": 3072, "up": 3072}
    expected |= {"blocks": 12 * (4 * 768**2 + 2 * 768 * 3072), "head": 50272 * 768, "lora_widths": 24 * 2 * 768}
    assert {name: getattr(shape, name) for name in expected} == expected
    assert (shape.smooth, shape.unfused_norms, shape.dropout, shape.embeddings) == (False, False, True, 2)


def test_a_mixture_multiplies_by_some_of_its_experts():
    shape = shape_of(tiny("mixtral"))
    experts = 2 * 4 * 3 * 32 * 64
    assert shape.blocks - shape.multiplied == experts // 2  # 2 of 4


@pytest.mark.parametrize(
    ("name", "reason"),
    [("./nowhere", "no such file or folder"), ("empty", "neither config.json"), ("other", "MODEL other: ")],
)
def test_what_has_no_shape_is_one_line(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=reason) as raised:
        read_shape(name)
    assert "\n" not in str(raised.value)


def test_activations_are_what_a_forward_pass_holds(model):
    engine, rows = ScoringEngine(model), rows_of(LOAD)
    with torch.no_grad():
        engine.score(rows)
        peak = allocator_peak(lambda: engine.score(rows)) * MIB
    memory = planning.forward(shape_of(model), LOAD)
    assert memory.activations + memory.logits == pytest.approx(peak, rel=0.1)
    assert memory.weights == 4 * sum(p.numel() for p in model.parameters())


def test_logits_of_many_scored_tokens_outgrow_the_blocks(model):
    scored = dataclasses.replace(LOAD, scored=30)
    engine = ScoringEngine(model, short_cuts=False)
    rows = [dataclasses.replace(row, start=len(row.tokens) - 30) for row in rows_of(scored)]
    with torch.no_grad():
        engine.score(rows)
        peak = allocator_peak(lambda: engine.score(rows)) * MIB
    memory = planning.forward(shape_of(model), scored)
    assert memory.logits > 0
    assert memory.activations + memory.logits == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("all_weights", [True, False])
def test_saved_is_what_autograd_keeps(model, all_weights):
    """Storages that the backward pass holds, less the weights."""
    shape = shape_of(model)
    if not all_weights:
        model = tune(LoadedModel(model, cast(Any, None), None, 64), TuningSettings("lora")).model
    model.train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    engine = ScoringEngine(model)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = engine.score(rows_of(LOAD))
    logits = 4 * 2 * LOAD.rows * 3000
    predicted = planning.saved(shape, LOAD, all_weights=all_weights)
    # What torch's kernels keep differs: 11 % under torch 2.8.
    assert predicted == pytest.approx(sum(kept.values()) - logits, rel=0.1 if TORCH >= (2, 11) else 0.15)
    assert scores.token_logprobs.requires_grad


def test_a_cache_is_as_large_as_the_models(model):
    cache = getattr(model(torch.zeros((2, 9), dtype=torch.long), use_cache=True), CACHE)
    size = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))
    assert planning.key_values(shape_of(model), 2 * 9, 4) == size


@pytest.mark.parametrize("method", ["lora", "prefix", "full"])
def test_trained_weights_are_those_of_the_tuner(method):
    loaded = load(MODEL)
    shape = shape_of(loaded.model)
    tuned: LoadedModel = tune(loaded, TuningSettings(method))
    trained = sum(p.numel() for p in tuned.model.parameters() if p.requires_grad)
    assert planning.adapter(shape, method) == trained


def shape(**changes):
    with torch.device("meta"):
        made = shape_of(skeleton(OPTConfig()))
    return dataclasses.replace(made, **changes)


def test_passes_are_cut_to_the_budget():
    long = planning.zero_shot(shape(), Load(tokens=2048))
    assert planning.zero_shot(shape(), Load(tokens=256)).activations == long.activations
    gpu = planning.zero_shot(shape(), Load(tokens=256, device="cuda"))
    assert gpu.activations == 8 * long.activations
    few = planning.mezo(shape(), Load(rows=4, tokens=256))
    assert few.activations == long.activations / 2


def test_mezo_adds_scratch_alone_and_16_bits_take_half():
    load = Load(rows=16, tokens=61, width=4)
    step, wide = planning.mezo(shape(), load), planning.forward(shape(), load)
    assert step.total - wide.total == step.scratch < 25 * MIB
    narrow = planning.mezo(shape(), dataclasses.replace(load, width=2))
    assert (narrow.weights, narrow.activations) == (step.weights // 2, step.activations // 2)


def test_small_trained_sets_are_copied_and_pairs_doubled():
    load, small = Load(rows=16, tokens=61, width=4), shape(parameters=10_000_000, head=0)
    assert planning.mezo(small, load).scratch == 4 * small.parameters
    pair, one = planning.mezo(shape(), Load(rows=4, tokens=61)), planning.mezo(shape(), Load(rows=8, tokens=61))
    assert pair.activations == one.activations
    assert pair.scratch > one.scratch
    assert planning.draws(shape(), Load(rows=4, tokens=61)) == shape().blocks + shape().parameters
    assert planning.draws(shape(), Load(rows=8, tokens=61)) == 2 * shape().blocks + shape().parameters


def test_the_order_of_the_methods():
    load = Load(device="cuda")
    memories = [
        planning.offloaded(shape(), load),
        planning.mezo(shape(), load),
        planning.backpropagation(shape(), load, "lora"),
        planning.backpropagation(shape(), load, "full"),
    ]
    totals = [memory.total for memory in memories]
    assert totals == sorted(totals)
    assert memories[-1].weights + memories[-1].training >= 12 * shape().parameters


def test_generation_and_shared_demonstrations_keep_caches():
    load = Load(rows=1, tokens=150, width=4)
    rows = KEPT_TOKENS["cpu"] // 200
    assert planning.generation(shape(), load).cache == planning.key_values(shape(), rows * 200, 4)
    shared = planning.shared_demonstrations(shape(), Load(rows=1, tokens=64, demonstrations=15))
    assert shared.cache == planning.key_values(shape(), 960 + 4 * (960 + 8 * 64), 2)
    assert planning.with_demonstrations(Load(tokens=256)).tokens == 2048


def test_operations_of_a_step():
    load = Load(rows=2, tokens=100)
    plain = planning.forward_flops(shape(), load, normalise=False)
    assert plain == 2 * 200 * shape().blocks + 12 * 4 * 768 * 200 * 100 // 2
    assert planning.mezo_flops(shape(), load) == 2 * plain
    forward = planning.forward_flops(shape(), load)
    assert planning.backpropagation_flops(shape(), load) == 3 * forward
    assert planning.backpropagation_flops(shape(), load, "lora") == 2 * forward


def test_a_spread_memory_divides_weights_and_not_passes():
    memory = Memory(weights=101, training=7, activations=5, cache=4, overhead=3)
    assert memory.total == 120
    assert memory.spread(2) == Memory(weights=51, training=4, activations=5, cache=2, overhead=3)
    assert memory.spread(1) == memory
