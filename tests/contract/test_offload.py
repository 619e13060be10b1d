"""Weights kept on the host, or in a file, or under a device map: the run is the same, to the bit."""

import copy
import gc

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from support.families import CONFIGS, tiny
from torch.utils._pytree import tree_leaves

from justforward.optim import MeZO
from justforward.optim.distribution.offload import Offload, to_file
from justforward.optim.probes import modules
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example

ROWS = [Example(tuple(Row((5, 6, 7 + i, 8, option), 4) for option in (9, 10)), 0) for i in range(4)]
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=["few at once", "each by itself"], autouse=True)
def _weights_of_few_elements(request, monkeypatch):
    if request.param == "each by itself":
        monkeypatch.setattr(modules, "FEW", 0)


def trained(model: torch.nn.Module, steps: int = 20) -> list[float]:
    """Train through the scoring engine; the projected gradients."""
    engine, objective = ScoringEngine(model), Classification()
    batch = objective.batch(engine, ROWS)
    mezo = MeZO(model.named_parameters(), lr=1e-3, eps=1e-2, model=model, probe="just_in_time")
    grads = []
    for _ in range(steps):
        mezo.step(lambda: objective.measure(engine, batch).loss)
        grads.append(mezo.last.projected_grad)  # type: ignore[union-attr]
    assert mezo.probe.reached  # type: ignore[union-attr]
    return grads


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    other = dict(b.named_parameters())
    return all(torch.equal(p, other[n]) for n, p in a.named_parameters())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", CONFIGS)
def test_offloaded_is_resident_to_the_bit(family, dtype, tmp_path):
    resident = tiny(family, dtype=dtype)
    copied, mapped = copy.deepcopy(resident), copy.deepcopy(resident)
    Offload(copied, "cpu")
    to_file(mapped, tmp_path)
    expected = trained(resident)
    assert len(set(expected)) > 10
    assert trained(copied) == expected
    assert trained(mapped) == expected
    assert same(copied, resident)
    assert same(mapped, resident)


def test_every_weight_is_on_the_device_while_its_module_runs_and_only_then():
    model = tiny("llama")
    host = {p.data_ptr() for p in model.parameters()}
    Offload(model, "cpu")
    seen = []

    def look(module, *_):
        if not isinstance(module, torch.nn.Embedding):
            seen.extend(p.data_ptr() for p in module.parameters(recurse=False))

    for module in model.modules():
        module.register_forward_pre_hook(look)
    model(input_ids=torch.tensor([[3, 4, 5]]))
    assert seen
    assert not host & set(seen)
    assert {p.data_ptr() for p in model.parameters()} == host


def test_a_forward_that_fails_leaves_the_weights_on_the_host():
    model = tiny("opt")
    host = {p.data_ptr() for p in model.parameters()}
    Offload(model, "cpu")
    model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=torch.tensor([[3, 4, 5]]))
    assert {p.data_ptr() for p in model.parameters()} == host


def test_the_file_has_no_name_and_holds_every_weight(tmp_path):
    model = tiny("gpt2")
    before = copy.deepcopy(model)
    size = to_file(model, tmp_path / "new")
    assert size >= sum(p.numel() * 4 for p in model.parameters())
    assert not list((tmp_path / "new").iterdir())
    assert same(model, before)
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    del before
    gc.collect()
    with torch.no_grad():
        next(model.parameters()).add_(1)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--zo_offload disk: .* cannot hold"):
        to_file(tiny("opt"), tmp_path / "file" / "folder")


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_a_device_map_changes_nothing(family):
    """Accelerate's hooks as it puts them on a model that is spread over devices, all of them this one."""
    plain = tiny(family)
    spread = copy.deepcopy(plain)
    names = [n for n, _ in spread.base_model.named_children()]
    parts = {f"{spread.base_model_prefix}.{n}": "cpu" for n in names}
    rest = {n: "cpu" for n, _ in spread.named_children() if n != spread.base_model_prefix}
    spread = dispatch_model(spread, {**parts, **rest}, main_device="cpu", force_hooks=True)  # type: ignore[arg-type]
    assert any("forward" in vars(m) for m in spread.modules())
    mezos = [MeZO(m.named_parameters(), lr=1e-3, model=m) for m in (spread, plain)]
    for grad in (0.5, -0.25, 0.125):
        for mezo in mezos:
            mezo.apply_logged([grad])
    assert same(spread, plain)
    # A head with hooks gives all logits, whose sum is rounded otherwise than those of the options alone.
    assert trained(spread) == pytest.approx(trained(plain), rel=1e-3)


def test_weights_that_a_device_map_moved_off_are_refused():
    model = cpu_offload(tiny("opt"), execution_device=torch.device("cpu"))
    assert any(p.is_meta for p in tree_leaves(list(model.parameters())))
    with pytest.raises(ValueError, match="--zo_offload"):
        MeZO(model.named_parameters(), model=model)
