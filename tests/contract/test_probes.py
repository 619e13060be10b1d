"""Every probe, on every family and dtype: the losses of theta +- eps z, and theta as it was."""

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support.families import CONFIGS, PLAIN_CONFIGS, tiny

from justforward.compat import TORCH
from justforward.optim import CounterNoise, MeZO
from justforward.optim.directions import base
from justforward.optim.probes import modules
from justforward.optim.probes.just_in_time import JustInTimeProbe
from justforward.optim.probes.moving import CopyProbe, InPlaceProbe
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example, TeacherForcing

FAMILIES = [*CONFIGS, *PLAIN_CONFIGS]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 3], [12, 5, 5, 6, 90, 91, 92, 4]])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 5e-3}


@pytest.fixture(params=["few at once", "each by itself"], autouse=True)
def _weights_of_few_elements(request, monkeypatch):
    """All weights of a tiny model are of few elements."""
    if request.param == "each by itself":
        monkeypatch.setattr(modules, "FEW", 0)


def loss(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS, labels=IDS).loss.float()


def bits(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def optimizer(model: torch.nn.Module, probe: str, distribution: str = "gaussian") -> MeZO:
    noise = CounterNoise(distribution)
    return MeZO(model.named_parameters(), lr=1e-4, eps=1e-2, model=model, probe=probe, noise=noise)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_exact_probes_agree_and_leave_every_bit(family, dtype):
    model = tiny(family, dtype=dtype)
    before = bits(model)
    measured = {}
    for probe in ("copy", "just_in_time"):
        estimate = optimizer(model, probe).estimate(lambda: loss(model))
        measured[probe] = estimate.losses[0]
        assert unchanged(model, before)
    assert measured["just_in_time"] == pytest.approx(measured["copy"], abs=TOLERANCE[dtype])
    assert measured["copy"][0] != measured["copy"][1]


@pytest.mark.parametrize("family", FAMILIES)
def test_just_in_time_reaches_every_trainable_tensor(family):
    model = tiny(family)
    mezo = optimizer(model, "just_in_time")
    mezo.estimate(lambda: loss(model))
    assert isinstance(mezo.probe, JustInTimeProbe)
    assert mezo.probe.reached == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_large_weights_are_perturbed_in_pieces(distribution, monkeypatch):
    model = tiny("llama")
    whole = optimizer(model, "just_in_time", distribution).estimate(lambda: loss(model))
    monkeypatch.setattr(modules, "FEW", 0)
    monkeypatch.setattr(base, "CHUNK", 100)  # three rows of 32 at a time
    pieces = optimizer(model, "just_in_time", distribution)
    assert pieces.estimate(lambda: loss(model)).losses[0] == pytest.approx(whole.losses[0], abs=1e-5)
    assert isinstance(pieces.probe, JustInTimeProbe)
    assert max(b.numel() for b in pieces.probe.modules.scratch.buffers.values()) <= 100


def test_pieces_on_a_gpu():
    assert base.piece("cpu", 10**10) == base.piece("cpu") == base.CHUNK
    assert [base.piece("cuda", trained) for trained in (10**9, 10**10)] == [base.GPU_CHUNK, 10**8]
    assert base.piece("cuda") == 4 * base.CHUNK < base.GPU_CHUNK  # z takes float32 tensors of a piece
    assert [base.whole_rows(6_500_000, 2048, device) for device in ("cpu", "cuda")] == [3173, 3136]
    assert [base.whole_rows(elements, 2048, "cuda") for elements in (1, 64 * 2048)] == [1, 64]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied_heads(tied):
    model = tiny("llama")
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    before = bits(model)
    losses = [optimizer(model, probe).estimate(lambda: loss(model)).losses[0] for probe in ("copy", "just_in_time")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert unchanged(model, before)


# Raised inside PEFT 0.21.2 under transformers 5.24, which renamed an attribute that PEFT reads.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_adapters():
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(tiny("llama", dtype=torch.bfloat16), config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    before = bits(model)
    losses = [optimizer(model, probe).estimate(lambda: loss(model)).losses[0] for probe in ("copy", "just_in_time")]
    assert losses[0] == pytest.approx(losses[1], abs=5e-2)
    assert unchanged(model, before)


class ReadsItsChildsWeight(torch.nn.Module):
    """Never calls `child`, only reads its weight, as fused blocks do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.child = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(self.first(x), self.child.weight, self.child.bias).square().sum()


def test_weights_that_no_call_reaches_are_copied_instead():
    model = ReadsItsChildsWeight()
    before = bits(model)
    x = torch.ones(2, 4)
    measured = [optimizer(model, probe).estimate(lambda: model(x)).losses[0] for probe in ("copy", "just_in_time")]
    assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    assert unchanged(model, before)


@pytest.mark.parametrize("probe", ["copy", "just_in_time"])
@pytest.mark.parametrize("failing_call", [1, 2, 3])
def test_a_probe_that_raises_leaves_every_bit(probe, failing_call):
    model = tiny("gpt2")
    before = bits(model)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(1)
        value = loss(model)
        if len(calls) == failing_call:
            raise KeyError("broken")
        return value

    mezo = optimizer(model, probe)
    for _ in range(failing_call):
        with contextlib.suppress(KeyError):
            mezo.estimate(closure)
    assert len(calls) >= failing_call
    assert unchanged(model, before)
    assert all("forward" not in vars(m) and not m._forward_pre_hooks for m in model.modules())


def test_a_forward_that_raises_inside_leaves_every_bit():
    model = tiny("mixtral")
    before = bits(model)
    model.model.layers[1].mlp.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("inside")))
    with pytest.raises(KeyError):
        optimizer(model, "just_in_time").estimate(lambda: loss(model))
    assert unchanged(model, before)


def test_in_place_probes_agree_up_to_rounding():
    model = tiny("opt")
    before = bits(model)
    in_place = optimizer(model, "in_place").estimate(lambda: loss(model))
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name], atol=1e-6)
    model.load_state_dict(before, strict=False)
    exact = optimizer(model, "just_in_time").estimate(lambda: loss(model))
    assert in_place.losses[0] == pytest.approx(exact.losses[0], abs=1e-5)


def examples(candidates: int, length: int) -> list[Example]:
    chance = torch.Generator().manual_seed(candidates + length)

    def tokens(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 97, (n,), generator=chance).tolist())

    prompts = [tokens(n) for n in (9, 12, 12)]
    return [Example(tuple(Row(p + tokens(length), len(p)) for _ in range(candidates)), 0) for p in prompts]


def measured(family, dtype, objective, rows, *, lora=False, paired=True):
    """(plus, minus), and whether pairs were used."""
    model = tiny(family, dtype=dtype)
    if lora:
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(model, config)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1)
    before, engine = bits(model), ScoringEngine(model)
    batch = objective.batch(engine, rows)
    mezo = optimizer(model, "paired")
    estimate = mezo.estimate(
        lambda: objective.measure(engine, batch).loss,
        paired=(lambda: objective.measure_pair(engine, batch)) if paired else None,
    )
    assert unchanged(model, before)
    assert isinstance(mezo.probe, JustInTimeProbe)
    return estimate.losses[0], mezo.probe.pairs


OBJECTIVES = {
    "one-token options": (Classification(), examples(3, 1)),
    "options of several tokens": (Classification(), examples(3, 4)),
    "teacher forcing": (TeacherForcing(), examples(1, 3)),
}


@pytest.mark.parametrize(
    ("dtype", "objective"),
    [
        *((torch.float32, objective) for objective in OBJECTIVES),
        (torch.bfloat16, "options of several tokens"),
        (torch.float16, "one-token options"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_measure_what_two_forwards_do(family, dtype, objective):
    if family == "mixtral" and dtype == torch.bfloat16 and TORCH < (2, 11):
        pytest.skip("in a doubled batch rounding sends a token to another expert")
    alone, _ = measured(family, dtype, *OBJECTIVES[objective], paired=False)
    together, pairs = measured(family, dtype, *OBJECTIVES[objective])
    assert pairs
    assert together == pytest.approx(alone, abs=TOLERANCE[dtype])


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_pairs_in_one_product_as_on_a_gpu(family, monkeypatch):
    alone, _ = measured(family, torch.float32, *OBJECTIVES["options of several tokens"], paired=False)
    products = []
    monkeypatch.setattr(modules, "AT_ONCE", {"cpu"})
    monkeypatch.setattr(torch, "bmm", lambda *given, to=torch.bmm: products.append(1) or to(*given))
    monkeypatch.setattr(torch, "baddbmm", lambda *given, to=torch.baddbmm: products.append(1) or to(*given))
    together, pairs = measured(family, torch.float32, *OBJECTIVES["options of several tokens"])
    assert pairs
    assert products or modules.FEW
    assert together == pytest.approx(alone, abs=TOLERANCE[torch.float32])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pairs_of_adapters(objective):
    alone, _ = measured("llama", torch.float32, *OBJECTIVES[objective], lora=True, paired=False)
    together, pairs = measured("llama", torch.float32, *OBJECTIVES[objective], lora=True)
    assert pairs
    assert together == pytest.approx(alone, abs=1e-5)


class LooksUpPositionsOnce(torch.nn.Module):
    """Positions [N] for the whole batch, which have no halves that belong to the batch's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.positions = torch.nn.Embedding(9, 4), torch.nn.Embedding(6, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return (self.words(ids) + self.positions(torch.arange(ids.shape[1]))).square().sum((1, 2))


@pytest.mark.parametrize("length", [4, 5])
def test_a_model_that_cannot_be_paired_is_probed_twice(length):
    model, ids = LooksUpPositionsOnce(), torch.arange(2 * length).view(2, length) % 9
    alone = optimizer(model, "just_in_time").estimate(lambda: model(ids).mean())
    mezo = optimizer(model, "paired")
    doubled = mezo.estimate(lambda: model(ids).mean(), paired=lambda: model(ids.repeat(2, 1)).view(2, 2).mean(1))
    assert doubled.losses == alone.losses
    assert isinstance(mezo.probe, JustInTimeProbe)
    assert mezo.probe.pairs is False


class ReadsAWeightItAlsoCalls(torch.nn.Module):
    """Calls `child`, and adds its weight once more by itself, as a tied head would."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.child = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.child(x) @ self.child.weight.T).square().sum()


def test_weights_that_something_else_reads_too_are_copied_instead():
    model, x = ReadsAWeightItAlsoCalls(), torch.ones(2, 4)
    losses = [optimizer(model, probe).estimate(lambda: model(x)).losses[0] for probe in ("copy", "just_in_time")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_just_in_time_probe_that_measures_something_else_is_not_used(monkeypatch, caplog):
    """A kernel that forgets the noise stands for whatever may go wrong."""
    model = tiny("llama")
    expected = optimizer(model, "copy").estimate(lambda: loss(model)).losses

    def forget(scratch, tensors, by, **_):
        return {n: torch.from_numpy(t.detach().numpy().copy())[None] for n, t in tensors.items()}

    monkeypatch.setattr(modules, "moved_copies", forget)
    mezo = optimizer(model, "just_in_time")
    assert mezo.estimate(lambda: loss(model)).losses == expected
    assert "weights are copied for each probe" in caplog.text


def test_the_choice(caplog):
    model = tiny("llama")
    small = optimizer(model, "auto").probe
    assert isinstance(small, JustInTimeProbe)
    assert small.copies
    assert isinstance(MeZO(model.named_parameters()).probe, CopyProbe)
    large = torch.nn.Linear(1 << 13, (1 << 11) + 1)
    assert isinstance(optimizer(large, "auto").probe, JustInTimeProbe)
    assert isinstance(MeZO(large.named_parameters()).probe, InPlaceProbe)
    assert caplog.text == ""
    wide = torch.nn.Linear(1 << 13, (1 << 12) + 1).to(torch.bfloat16)
    assert isinstance(MeZO(wide.named_parameters()).probe, InPlaceProbe)
    assert "give MeZO the model" in caplog.text
    with pytest.raises(ValueError, match="unknown probe"):
        optimizer(model, "magic")
    with pytest.raises(ValueError, match="needs the model"):
        MeZO(model.named_parameters(), probe="just_in_time")


def test_the_model_can_be_copied_and_saved_between_steps():
    model = tiny("llama")
    mezo = optimizer(model, "just_in_time")
    mezo.step(lambda: loss(model))
    twin = copy.deepcopy(model)
    assert torch.equal(twin.lm_head.weight, model.lm_head.weight)
