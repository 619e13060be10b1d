"""Weights of 8 and 4 bits: what can be trained over them, through the command line, to the bit."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support.golden import DATA, MODEL

from justforward.commands.cli import main
from justforward.models.loading import load
from justforward.models.quantised import NAME, scales
from justforward.models.recipe import ModelRecipe
from justforward.models.tuning import TuningSettings, tune
from justforward.optim import MeZO
from justforward.results.places import predictions

pytest.importorskip("torchao", reason="weights of 8 bits need torchao, an extra")
pytest.importorskip("bitsandbytes", reason="weights of 4 bits need bitsandbytes, an extra")
KINDS = ("int8", "4bit")
# fmt: off
JOB = ["--task_name", "SST2", "--data_dir", DATA, "--use_cpu", "--report_to", "none", "--num_eval", "4"]
TRAIN = ["--train_as_classification", "--num_train", "4", "--train_set_seed", "0", "--max_steps", "2",
         "--trainer", "zo", "--zo_eps", "1e-2", "--learning_rate", "1e-2", "--save_model"]
# fmt: on
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def run(tmp_path, name, *words):
    assert (
        main([*JOB, *words, "--output_dir", str(tmp_path / name), "--result_file", str(tmp_path / f"{name}.json")]) == 0
    )
    rows = predictions(tmp_path / f"{name}.json").read_text().splitlines()
    return [json.loads(row)["scores"] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_near_and_are_not_trained_themselves(kind):
    loaded = ModelRecipe(model_name=MODEL, dtype=kind).build()
    difference = (logits(loaded.model) - logits(load(MODEL).model)).abs().max()
    assert 0 < difference < (0.05 if kind == "int8" else 2.0)
    for method in ("full", "head"):
        with pytest.raises(ValueError, match="train an adapter"):
            tune(loaded, TuningSettings(method=method))


@pytest.mark.parametrize(
    ("method", "kind"),
    [("--lora", "4bit"), ("--prefix_tuning", "int8"), ("--tune_scales", "4bit"), ("--tune_scales", "int8")],
)
def test_what_is_trained_is_replayed_saved_and_used_again(method, kind, tmp_path):
    """The run's log names the weights by what their bits are, those of quantised ones too."""
    words = ["--model_name", MODEL, f"--load_{kind}", *TRAIN, method]
    scored = run(tmp_path, "out", *words)
    assert main(["replay", str(tmp_path / "out"), "--output", str(tmp_path / "again")]) == 0
    name = "model.safetensors" if method == "--tune_scales" else "adapter_model.safetensors"
    saved, again = (load_file(tmp_path / folder / name) for folder in ("out", "again"))
    assert all(torch.equal(saved[key], again[key]) for key in saved)
    # Scales are saved in the weights that they belong to, which then say themselves that they are quantised.
    load_it = [] if method == "--tune_scales" else [f"--load_{kind}"]
    used = run(tmp_path, "used", "--model_name", str(tmp_path / "out"), *load_it)
    torch.testing.assert_close(torch.tensor(used), torch.tensor(scored), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_are_moved_where_they_lie_and_probes_leave_every_bit(kind):
    loaded = ModelRecipe(model_name=MODEL, dtype=kind).build()
    model = tune(loaded, TuningSettings(method="scales")).model
    moved = {name for name, p in model.named_parameters() if p.requires_grad}
    assert moved
    assert {name.rsplit(".", 1)[-1] for name in moved} == {NAME}
    places = [(module.get_parameter(NAME), scale) for module, scale in scales(model)]
    assert all(p.data_ptr() == scale.data_ptr() for p, scale in places)
    before, start = [p.clone() for p, _ in places], logits(model)
    mezo = MeZO(model.named_parameters(), lr=1e-2, eps=1e-2, model=model, probe="copy", clip=0.25)
    estimate = mezo.estimate(lambda: logits(model).square().mean())
    assert estimate.plus != estimate.minus
    assert abs(estimate.projected_grad) <= 0.25
    assert all(torch.equal(p, old) for (p, _), old in zip(places, before, strict=True))
    mezo.step()
    assert not torch.equal(logits(model), start)
    after = logits(model)
    saved = model.state_dict()
    assert not any(NAME in name for name in saved)
    assert torch.equal(logits(model), after)


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_package(kind, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'justforward\[quant\]'"):
        load(MODEL, quantised=kind)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tune_scales", "--trainer", "zo"],
            "--tune_scales trains the scales of quantised weights, and there are none",
        ),
        (["--tune_scales", "--load_4bit", "--trainer", "regular"], "by forward passes: use --trainer zo"),
        (["--tune_scales", "--load_4bit", "--trainer", "zo", "--zo_method", "lozo"], "use dense directions"),
        (["--tune_scales", "--load_4bit", "--trainer", "zo", "--lora"], "exclude each other"),
        (["--load_4bit", "--load_int8"], "exclude each other"),
        (["--load_4bit", "--trainer", "zo"], "--load_4bit weights cannot be trained themselves"),
        (["--load_4bit", "--trainer", "zo", "--lora", "--zo_offload", "cpu"], "leave out --fsdp"),
        (["--trainer", "zo", "--zo_clip", "0"], "argument --zo_clip: must be above 0"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    train = (
        [] if "--trainer" not in words else ["--num_train", "4", "--train_set_seed", "0", "--output_dir", str(tmp_path)]
    )
    assert main([*JOB, "--model_name", MODEL, "--result_file", str(tmp_path / "r.json"), *train, *words]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
