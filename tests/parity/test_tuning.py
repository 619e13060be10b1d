"""The original's MeZO trajectories over LoRA, a prefix and the head, with its noise and its starting values."""

import math

import pytest
import torch
from support.golden import MODEL, OriginalNoise, facts
from support.replay import lora_of_the_original, replay_sst2
from transformers import set_seed

from justforward.models.loading import load
from justforward.models.tuning import TuningSettings, tune

SEEDS = facts("rng")["zo_random_seeds"]["0"]
LAYERS = [f"model.decoder.layers.{i}.self_attn" for i in range(2)]


class ByHalfLayer:
    """The original holds a prefix as keys [n, 64] and values [n, 64] of each layer; PEFT side by side in one tensor."""

    version = "original"

    def __init__(self):
        self.inner = OriginalNoise(SEEDS)

    def add_(self, parameters, *, scales, decays, **which):
        ((name, prefix),) = parameters
        parts = prefix.split(64, dim=1)
        # z is drawn per part, and a view writes through to PEFT's tensor.
        self.inner.add_([(name, p) for p in parts], scales=scales * len(parts), decays=decays * len(parts), **which)


def tuned(method, **settings):
    set_seed(0)
    return tune(load(MODEL), TuningSettings(method, **settings))


def assert_same_steps(estimates, recorded):
    for estimate, step in zip(estimates, recorded["steps"], strict=True):
        assert estimate.plus == pytest.approx(step["loss1"], abs=1e-5)
        assert estimate.minus == pytest.approx(step["loss2"], abs=1e-5)
        assert estimate.projected_grad == pytest.approx(step["projected_grad"], rel=1e-2, abs=2e-3)


def assert_same_tensor(tensor, total_and_norm):
    total, norm = total_and_norm
    assert tensor.double().norm().item() == pytest.approx(norm, rel=1e-5)
    assert tensor.double().sum().item() == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize("seed", [0, 42])
def test_lora_starts_as_the_originals_in_distribution(seed):
    """The replay's starting values are the recorded ones; PEFT draws from the same distribution."""
    recorded = facts("tuning")[f"lora_init_64x64_r8_seed{seed}_four_layers_in_order_q_v_q_v"]
    for a, fact in zip(lora_of_the_original(seed), recorded, strict=True):
        assert_same_tensor(a, (fact["A_sum"], fact["A_l2"]))
        assert a[0, :4].tolist() == pytest.approx(fact["A_head"])
    ours = torch.cat([p.flatten() for n, p in tuned("lora").model.named_parameters() if "lora_A" in n])
    bound = 1 / math.sqrt(64)
    assert 0.98 * bound < ours.abs().max().item() <= bound
    assert ours.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)


def test_lora_trajectory():
    recorded = facts("train/mezo_lora_sst2")
    loaded = tuned("lora")
    start = dict(zip([f"{layer}.{p}_proj" for layer in LAYERS for p in "qv"], lora_of_the_original(0), strict=True))
    trained = {n: p for n, p in loaded.model.named_parameters() if p.requires_grad}
    original_name = {n: n.removeprefix("base_model.model.").removesuffix(".default.weight") for n in trained}
    assert list(original_name.values()) == list(recorded["trainable_before"])
    with torch.no_grad():
        for name, parameter in trained.items():
            if "lora_A" in name:
                parameter.copy_(start[original_name[name].removesuffix(".lora_A")])
            assert_same_tensor(parameter, recorded["trainable_before"][original_name[name]])
    assert_same_steps(replay_sst2(recorded, loaded, OriginalNoise(SEEDS)), recorded)
    for name, parameter in trained.items():
        assert_same_tensor(parameter, recorded["trainable_after"][original_name[name]])


@pytest.mark.parametrize("seed", [0, 7, 42])
@pytest.mark.parametrize("vocabulary", [4352, 50272])
def test_prefix_tokens(seed, vocabulary, monkeypatch):
    """A prefix starts from the original's random tokens."""
    loaded = load(MODEL)
    seen = []
    monkeypatch.setattr(loaded.model.config, "vocab_size", vocabulary)
    monkeypatch.setattr(loaded.model, "forward", lambda tokens, **_: seen.append(tokens.tolist()) or 1 / 0)
    set_seed(seed)
    with pytest.raises(ZeroDivisionError):
        tune(loaded, TuningSettings("prefix"))
    assert seen == [[facts("tuning")["prefix_init_tokens"][f"seed{seed}|vocab{vocabulary}"]]]


@pytest.mark.parametrize("name", ["mezo_prefix_sst2", "mezo_prefix_randinit_sst2"])
def test_prefix_trajectory(name):
    recorded = facts(f"train/{name}")
    real = name == "mezo_prefix_sst2"
    loaded = tuned("prefix", prefix_from_activations=real)
    (prefix,) = [p for p in loaded.model.parameters() if p.requires_grad]
    if not real:
        set_seed(0)
        with torch.no_grad():
            prefix.copy_(torch.cat([torch.randn(5, 64) for _ in range(4)], dim=1))
    parts = [f"{layer}.prefix_{kind}" for layer in LAYERS for kind in ("keys", "values")]
    for part, values in zip(parts, prefix.split(64, dim=1), strict=True):
        assert_same_tensor(values, recorded["trainable_before"][part])
    # The original does not shift the positions of the tokens behind a prefix.
    assert_same_steps(replay_sst2(recorded, loaded, ByHalfLayer(), position_offset=0), recorded)
    for part, values in zip(parts, prefix.split(64, dim=1), strict=True):
        assert_same_tensor(values, recorded["trainable_after"][part])


@pytest.mark.parametrize("untie", [True, False])
def test_head_trajectory(untie):
    """With and without --untie_emb the head alone moves: as the original's untied run."""
    recorded = facts("train/mezo_head_tuning_untie_sst2")
    loaded = tuned("head", untie=untie)
    assert_same_steps(replay_sst2(recorded, loaded, OriginalNoise(SEEDS)), recorded)
    assert_same_tensor(loaded.model.get_parameter("lm_head.weight"), recorded["trainable_after"]["lm_head.weight"])
    tied = facts("train/mezo_head_tuning_sst2")
    assert list(tied["trainable_before"]) == ["model.decoder.embed_tokens.weight"]
    before = tied["trainable_before"]["model.decoder.embed_tokens.weight"]
    assert_same_tensor(loaded.model.get_input_embeddings().weight, before)
