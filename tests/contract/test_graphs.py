"""Steps whose passes are recorded and replayed measure what others do: here taped on a CPU, on a GPU as CUDA graphs."""

from typing import Any

import pytest
import torch
from support.families import VOCABULARY, tiny
from support.taped import TapedNoise, record
from transformers import TrainingArguments

from justforward.noise import recording
from justforward.optim import MeZO
from justforward.optim.directions import dense
from justforward.optim.probes import graphs as graphs_module
from justforward.optim.probes import modules
from justforward.optim.probes.graphs import CudaRecorder, Graphs
from justforward.scoring import ScoringEngine
from justforward.scoring.prompts import Row
from justforward.training.objective_trainer import ObjectiveMeZOTrainer
from justforward.training.objectives import Classification, Example, TeacherForcing

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LENGTHS = (5, 9, 5, 12, 20, 9)
"""Tokens of the longest prompt of each step: of two shapes, once they are padded."""


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(modules, "FEW", 64)  # so that even these models have weights that are perturbed on the way
    if request.param == "cpu":
        noise = TapedNoise()
        monkeypatch.setattr(dense, "backend", lambda _: noise)
    return request.param


def batch_of(length: int) -> list[Example]:
    generator = torch.Generator().manual_seed(length)
    prompts = [torch.randint(5, VOCABULARY, (length - i % 3,), generator=generator).tolist() for i in range(4)]
    return [Example(tuple(Row((*p, *option), len(p)) for option in ((8,), (9,))), i % 2) for i, p in enumerate(prompts)]


def steps(family: str, device: str, *, probe: str, objective, graphs=None, **settings):
    """Losses of some steps, the weights they end with, and the graphs."""
    model: Any = tiny(family)
    model.to(device)
    engine = ScoringEngine(model)
    recorded = None if graphs is None else Graphs(model, graphs)
    engine.graphs = recorded
    named = [(n, p) for n, p in model.named_parameters() if "proj" in n or probe != "copy"]
    mezo = MeZO(named, lr=1e-3, eps=1e-2, model=model, probe=probe, graphs=recorded, **settings)
    losses = []
    for length in LENGTHS:
        batch = objective.batch(engine, batch_of(length))
        mezo.estimate(
            lambda batch=batch: objective.measure(engine, batch).loss,
            paired=lambda batch=batch: objective.measure_pair(engine, batch),
        )
        losses.append(mezo.step())
    return losses, dict(model.named_parameters()), recorded


OBJECTIVES = {"classification": Classification(), "teacher forcing": TeacherForcing()}


@pytest.mark.parametrize(
    ("family", "probe", "objective"),
    [
        ("opt", "paired", "classification"),
        ("opt", "just_in_time", "teacher forcing"),
        ("llama", "paired", "teacher forcing"),
        ("llama", "just_in_time", "classification"),
        ("llama", "copy", "classification"),
    ],
)
def test_a_replayed_step_is_the_step(family, probe, objective, device):
    record_it = record if device == "cpu" else CudaRecorder()
    plain, weights, _ = steps(family, device, probe=probe, objective=OBJECTIVES[objective])
    replayed, others, graphs = steps(family, device, probe=probe, objective=OBJECTIVES[objective], graphs=record_it)
    assert replayed == pytest.approx(plain, abs=2e-5)
    assert all(torch.allclose(w, others[n], atol=1e-4) for n, w in weights.items())
    assert graphs is not None
    assert len(graphs.recorded) == 2  # shapes, not steps
    if probe != "copy":  # the direction's keys are written anew
        assert all(made.names for made in graphs.recorded.values())


def logits_of(model):
    return lambda given: model(**given).logits


def test_weights_that_are_elsewhere_are_read_there(device):
    model: Any = tiny("opt")
    model.to(device)
    graphs = Graphs(model, record if device == "cpu" else None)
    inputs = {"input_ids": torch.full((2, 16), 7, device=device)}
    head = model.get_output_embeddings()
    with torch.no_grad(), graphs.used():
        before = graphs.call(logits_of(model), inputs).clone()
        head.weight.data = head.weight.data * 2
        after = graphs.call(logits_of(model), inputs).clone()
        expected = model(**inputs).logits
    assert not torch.allclose(before, after)
    assert torch.allclose(after, expected, atol=1e-5)
    assert len(graphs.recorded) == 2


def barred(run):
    run()
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


def wrong(run):
    made = run()
    return lambda: made.fill_(7.0), made


def empty(run):
    return lambda: None, run()


def astray(run):
    made = run()
    return lambda: made.fill_(torch.nan), made


OTHERS = "others than those of the pass"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (barred, r"recorded as a CUDA graph \(operation not permitted when stream is capturing\): leave"),
        (wrong, OTHERS),
        (empty, OTHERS),
        (astray, OTHERS),
    ],
)
def test_a_model_that_cannot_be_recorded_is_refused_in_one_line(how, said, device):
    with pytest.raises(recording.NotRecordable, match=said):
        steps("opt", device, probe="paired", objective=Classification(), graphs=how)


def test_the_shape_that_was_used_longest_ago_makes_room(device, monkeypatch):
    monkeypatch.setattr(graphs_module, "MOST", 2)
    model: Any = tiny("opt")
    model.to(device)
    graphs = Graphs(model, record if device == "cpu" else None)
    with torch.no_grad(), graphs.used():
        for length in (32, 16, 32, 48, 32):
            inputs = {"input_ids": torch.full((1, length), 7, device=device)}
            assert torch.allclose(graphs.call(logits_of(model), inputs), model(**inputs).logits, atol=1e-5)
    assert [made.result.shape[1] for made in graphs.recorded.values()] == [48, 32]
    assert (graphs.made, graphs.replayed) == (3, 5)
    places = {made.result.untyped_storage().data_ptr() for made in graphs.recorded.values()}
    assert len(places) == 1  # logits are large, and are read before the next are made


def test_a_model_on_no_gpu_is_refused():
    with pytest.raises(ValueError, match="for an NVIDIA GPU, and the model is on none"):
        ObjectiveMeZOTrainer(engine=ScoringEngine(tiny("opt")), zo_cuda_graphs=True)
    spread = tiny("opt")
    spread.get_input_embeddings().to("meta")
    with pytest.raises(ValueError, match="this one is spread"):
        ObjectiveMeZOTrainer(engine=ScoringEngine(spread), zo_cuda_graphs=True)


def test_keys_and_scales_are_written_as_the_device_reads_them(device):
    table = recording.Launches(device)
    with recording.recording(table):
        row = table.row(2**63 + 5, 0.25)
    table.write([(2**63 + 7, -0.5)])
    key, bits = row.tolist()
    assert key % 2**64 == 2**63 + 7
    assert torch.tensor([bits]).to(torch.int32).view(torch.float32).item() == -0.5


def test_a_training_pads_its_own_batches_alone_and_gives_the_memory_back(device, tmp_path):
    losses, padded = [], []
    for replaying in (False, True):
        model: Any = tiny("opt")
        engine = ScoringEngine(model.to(device))
        arguments = TrainingArguments(
            str(tmp_path), max_steps=3, per_device_train_batch_size=4, use_cpu=device == "cpu", report_to="none",
            logging_steps=1, save_strategy="no", eval_strategy="steps", eval_steps=1, disable_tqdm=True,
            lr_scheduler_type="constant", learning_rate=1e-3,
        )  # fmt: skip
        trainer = ObjectiveMeZOTrainer(
            model, arguments, objective=Classification(), engine=engine, zo_eps=1e-2, zo_probe="paired",
            train_dataset=[e for length in LENGTHS for e in batch_of(length)], eval_dataset=batch_of(6),
        )  # fmt: skip
        graphs = Graphs(model, record if device == "cpu" else None)
        if replaying:
            trainer.graphs = trainer.mezo_settings["graphs"] = graphs
        plan = engine.plan
        engine.plan = lambda rows, owners=None, e=engine, plan=plan: padded.append(e.graphs) or plan(rows, owners)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert engine.graphs is None
        if replaying:
            assert graphs.made > 0
            assert graphs.replayed == 3
            assert not graphs.recorded
            assert padded[-6:].count(graphs) == 3
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
