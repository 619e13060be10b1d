"""The guide of every family that has one: the last block's is the gradient, the step goes as far as is measured."""

import copy
import functools
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from support.families import CONFIGS, HARD_CONFIGS, VOCABULARY
from support.golden import DATA, MODEL
from support.killing import KillAfter, Killed, same, weights

import justforward
from justforward import experiment
from justforward.command_line.arguments import parse
from justforward.commands.cli import main
from justforward.models.blocks import find_blocks
from justforward.models.residual import find_stream
from justforward.optim import DivergenceError
from justforward.optim.factors import Factors
from justforward.optim.guided import Guided
from justforward.optim.log import read
from justforward.scoring import Scores, ScoringEngine
from justforward.scoring.guide import Guide, check
from justforward.scoring.prompts import Row
from justforward.training.objectives import Classification, Example, TeacherForcing

_llama = CONFIGS["llama"]().to_dict()
_small = {
    name: _llama[name]
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
}
FAMILIES = {
    **{name: CONFIGS[name] for name in ("opt", "llama", "gpt2", "gpt_neox", "qwen2", "gemma", "mistral", "phi")},
    "gpt_neo": HARD_CONFIGS["gpt_neo"],
    "falcon_alibi": HARD_CONFIGS["falcon_alibi"],
    "qwen3": lambda: hf.Qwen3Config(**_small, num_key_value_heads=2, head_dim=8),
    "starcoder2": lambda: hf.Starcoder2Config(**_small, num_key_value_heads=2),
    "stablelm": lambda: hf.StableLmConfig(**_small, num_key_value_heads=2, pad_token_id=None),
    "granite": lambda: hf.GraniteConfig(
        **_small, num_key_value_heads=2, residual_multiplier=0.3, logits_scaling=2.0, embedding_multiplier=3.0
    ),
    "cohere": lambda: hf.CohereConfig(**_small, num_key_value_heads=2, logit_scale=0.5),
}
"""Each by its own scale: Granite multiplies what a block adds, and Cohere its logits."""

REFUSED = {
    "gemma2": HARD_CONFIGS["gemma2"],
    "mixtral": CONFIGS["mixtral"],
    "olmo2": lambda: hf.Olmo2Config(**_small, num_key_value_heads=2),
    "opt-post-norm": lambda: hf.OPTConfig(
        **{**CONFIGS["opt"]().to_dict(), "do_layer_norm_before": False, "_remove_final_layer_norm": True}
    ),
}
SCALES = {"granite": 0.3 / 2.0, "cohere": 0.5}


def test_a_loss_that_does_not_follow_is_refused():
    watched = Watched(made(FAMILIES["llama"]), Classification())
    name, factors = watched.last
    with pytest.raises(ValueError, match="the loss does not follow what "):
        check(watched.guide, watched.loss, {name: factors}, lambda by: -by)


def made(make, dtype=torch.float32):
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(make()).eval()
    with torch.no_grad():
        for p in model.parameters():  # far enough from where all is symmetric, norms included
            p.add_(0.2 * torch.randn(p.shape))
    return model.to(dtype)


def examples(count=5):
    """Two options each, of one token and of several."""
    chance = random.Random(0)

    def some(least, most):
        return tuple(chance.randrange(3, VOCABULARY) for _ in range(chance.randrange(least, most)))

    found = []
    for i in range(count):
        prompt = (1, *some(3, 12))
        options = [some(1, 2) if i % 2 else some(2, 4) for _ in range(2)]
        found.append(Example(tuple(Row((*prompt, *option), len(prompt)) for option in options), i % 2))
    return found


class Watched:
    """A model, a batch, and what the guide makes of it."""

    def __init__(self, model, objective, dtype=torch.float32):
        self.engine, self.objective = ScoringEngine(model), objective
        stream = find_stream(model)
        self.guide = Guide(stream, stream.projections)
        with torch.no_grad():
            self.batch = objective.batch(self.engine, examples())
            self.engine.guide = self.guide
            scores = self.engine.run(self.batch.plan, normalise=self.batch.normalise)
            self.engine.guide = None
        values = scores.token_logprobs.detach().requires_grad_()
        loss = objective.evaluate(Scores(values, scores.lengths), self.batch).loss
        self.loss = float(loss.detach())
        self.factors = self.guide.take(*torch.autograd.grad(loss, values))

    @torch.no_grad()
    def at(self, factors, by):
        with self.guide.shifted(factors, by):
            return float(self.objective.measure(self.engine, self.batch).loss)

    @property
    def last(self):
        name = self.guide.projections[-1].name
        return name, self.factors[name]


OBJECTIVES = {
    "classification": Classification(),
    "answers": TeacherForcing(),
    "texts": TeacherForcing(only_option=False),
}
every_objective = pytest.mark.parametrize("objective", OBJECTIVES)


@pytest.mark.parametrize("family", FAMILIES)
@every_objective
def test_the_last_layers_guide_is_its_gradient_up_to_the_familys_scale(family, objective):
    model = made(FAMILIES[family])
    watched = Watched(model, OBJECTIVES[objective])
    name, factors = watched.last
    watched.objective.measure(watched.engine, watched.batch).loss.backward()
    gradient = model.get_parameter(name).grad
    torch.testing.assert_close(factors.rows(slice(None)) * SCALES.get(family, 1.0), gradient, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_finds_the_familys_scale(family):
    watched = Watched(made(FAMILIES[family]), Classification())
    name, factors = watched.last
    own = {name: factors}
    scale = check(watched.guide, watched.loss, own, functools.partial(watched.at, own))
    assert scale == pytest.approx(SCALES.get(family, 1.0), rel=0.05)


@pytest.mark.parametrize("family", REFUSED)
def test_a_stream_that_is_not_understood_is_refused_in_one_line(family):
    with pytest.raises(ValueError, match="a guide needs") as refused:
        find_stream(made(REFUSED[family]))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_shifted_model_is_the_one_whose_weights_were_moved(family):
    model = made(FAMILIES[family])
    watched = Watched(model, TeacherForcing())
    shifted = watched.at(watched.factors, 0.01)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, one in watched.factors.items():
            moved.get_parameter(name).add_(one.rows(slice(None)), alpha=0.01)
        engine = ScoringEngine(moved)
        loss = watched.objective.measure(engine, watched.objective.batch(engine, examples())).loss
    assert shifted == pytest.approx(float(loss), abs=1e-5)
    assert watched.at(watched.factors, 0.0) == pytest.approx(watched.loss, abs=1e-6), "and is itself again"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_the_guide_is_that_of_float32_but_for_rounding(dtype):
    wide = made(FAMILIES["llama"])
    narrow = copy.deepcopy(wide).to(dtype)
    _, factors = Watched(narrow, Classification()).last
    _, exact = Watched(narrow.float(), Classification()).last
    one, other = factors.rows(slice(None)), exact.rows(slice(None))
    assert one.dtype == torch.float32
    assert float((one * other).sum() / (one.norm() * other.norm())) > 0.99


def quadratic(p, curvature):
    """Loss, direction and probe of curvature |p|^2 / 2, whose gradient is the guide."""
    factors = {"p": Factors((curvature * p.detach()).T.contiguous(), torch.eye(p.shape[1]))}

    def shifted(direction, by):
        return float(curvature * (p.detach() + by * direction["p"].rows(slice(None))).square().sum() / 2)

    return float(curvature * p.detach().square().sum() / 2), factors, shifted


@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e3])
def test_the_length_of_a_step_is_slope_over_curvature_whatever_the_scale(curvature):
    p = torch.nn.Parameter(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    guided = Guided([("p", p)], lr=1e-9)
    for _ in range(4):
        guided.estimate(*quadratic(p, curvature))
        guided.step()
    assert guided.slope_share == pytest.approx(1.0, rel=1e-3)
    assert guided.progress["length"] == pytest.approx(2 / curvature, rel=1e-3)
    guided.param_groups[0]["lr"] = 0.5  # which undoes the boldness: one step reaches the minimum
    guided.estimate(*quadratic(p, curvature))
    guided.step()
    assert p.abs().max() < 1e-3


def test_where_the_loss_rises_along_the_guide_no_step_is_made(caplog):
    p = torch.nn.Parameter(torch.ones(2, 2))
    guided = Guided([("p", p)])
    loss, factors, shifted = quadratic(p, 1.0)
    with caplog.at_level("WARNING"):
        guided.estimate(loss, {"p": factors["p"].times(-1.0)}, shifted)
    guided.step()
    assert torch.equal(p, torch.ones(2, 2))
    assert "does not fall along the guide" in caplog.text


def test_a_step_uphill_is_not_made_where_the_loss_bends_down_and_a_later_probe_mends_it():
    p = torch.nn.Parameter(torch.ones(2, 2))
    guided = Guided([("p", p)], lr=1e-6)
    loss, factors, shifted = quadratic(p, 1.0)
    guided.estimate(loss, factors, lambda _, by: loss - by - by * by)
    guided.step()
    assert guided.progress["length"] == 0
    assert torch.equal(p, torch.ones(2, 2))
    for _ in range(4):
        guided.estimate(loss, factors, shifted)
        guided.step()
    assert guided.progress["length"] > 0


def test_long_texts_have_the_norm_of_short_ones(monkeypatch):
    torch.manual_seed(0)
    factors = Factors(torch.randn(50, 4), torch.randn(50, 5))
    exact = float(factors.rows(slice(None)).square().sum())
    monkeypatch.setattr("justforward.optim.factors.GRAM", 130)  # two rows at a time
    assert factors.squared() == pytest.approx(exact, rel=1e-5)


def test_losses_that_are_not_finite_skip_the_step_and_end_the_training():
    p = torch.nn.Parameter(torch.ones(2, 2))
    guided = Guided([("p", p)], max_skipped=2)
    factors = {"p": Factors(torch.full((1, 2), math.nan), torch.ones(1, 2))}
    guided.estimate(math.nan, factors, lambda _, by: math.nan)
    guided.step()
    assert torch.equal(p, torch.ones(2, 2))
    guided.estimate(math.nan, factors, lambda _, by: math.nan)
    with pytest.raises(DivergenceError, match="2 steps in a row"):
        guided.step()


def test_micro_batches_add_up_by_their_weights():
    torch.manual_seed(0)
    one, two = (Factors(torch.randn(3, 4), torch.randn(3, 5)) for _ in range(2))
    moved = []
    for parts in ([(one, 3.0), (two, 1.0)], [(one.times(0.75).joined(two.times(0.25)), 4.0)]):
        p = torch.nn.Parameter(torch.zeros(4, 5))
        guided = Guided([("p", p)])
        guided.progress.update(step=7, length=0.1)  # a step without probes
        for factors, weight in parts:
            guided.estimate(1.0, {"p": factors}, lambda _, by: math.nan, weight)
        guided.step()
        moved.append(p.detach())
    torch.testing.assert_close(*moved)


def two_parts(seed=0):
    """A quadratic of two weights; the guide of the first is the gradient, that of the second has nothing to do with it.

    Also the loss, and what a probe measures.
    """
    torch.manual_seed(seed)
    ps = {name: torch.nn.Parameter(torch.randn(6, 8)) for name in ("good", "bad")}
    chance = torch.Generator().manual_seed(1)

    def direction():
        bad = torch.randn(6, 8, generator=chance)
        bad -= ps["bad"].detach() * (bad * ps["bad"].detach()).sum() / ps["bad"].detach().square().sum()
        return {n: Factors(d.T.contiguous(), torch.eye(8)) for n, d in (("good", ps["good"].detach()), ("bad", bad))}

    def loss(moved=None, by=0.0):
        parts = [p.detach() + (by * moved[n].rows(slice(None)) if moved else 0) for n, p in ps.items()]
        return float(sum(part.square().sum() for part in parts) / 2)

    return ps, direction, loss


def test_a_part_that_does_not_help_stops_moving():
    ps, direction, loss = two_parts()
    guided = Guided(ps.items(), lr=1e-3, parts={"good": 3, "bad": 7})
    for _ in range(60):
        guided.estimate(loss(), direction(), loss)
        guided.step()
    assert guided.coefficients is not None
    fitted = guided.coefficients.fitted(guided.progress["told"])
    assert fitted[3] == 1.0
    assert fitted[7] < 0.15
    assert guided.progress["forwards"] == 60 + 4 * 10


def test_a_random_share_moves_what_the_guide_does_not_see():
    """The guide has one row of two; with a random share the other's loss falls too."""
    torch.manual_seed(0)
    target, lost = torch.randn(2, 8), {}
    for noise in (0.0, 1.0):
        p = torch.nn.Parameter(torch.zeros(2, 8))

        def loss(moved=None, by=0.0, p=p):
            return float((p.detach() + (by * moved["p"].rows(slice(None)) if moved else 0) - target).square().sum() / 2)

        guided = Guided([("p", p)], lr=0.5, noise=noise)
        for _ in range(300):
            seen = (p.detach() - target) * torch.tensor([[1.0], [0.0]])
            guided.estimate(loss(), {"p": Factors(seen.T.contiguous() + 1e-3, torch.eye(8))}, loss)
            guided.step()
        lost[noise] = (p.detach() - target)[1].square().mean()
    assert lost[1.0] < 0.2 * lost[0.0]


def test_a_metric_says_whether_and_which_way():
    for sign in (1.0, -1.0):
        p = torch.nn.Parameter(torch.ones(2, 2))
        guided = Guided([("p", p)], lr=0.1)
        loss, factors, shifted = quadratic(p, 1.0)
        for _ in range(4):
            guided.estimate(loss, factors, shifted, metric=lambda d, by, sign=sign: sign * by)
            guided.step()
        # The first step's one probe of the metric is held to the assumption that it agrees with the loss.
        assert guided.agreement == pytest.approx(1.0 if sign > 0 else -3 / 5)
        assert (p.detach() < 1).all() if sign > 0 else (p.detach() > 1).all()


# fmt: off
JOB = ["--task_name", "SST2", "--data_dir", DATA, "--model_name", MODEL, "--use_cpu", "--disable_tqdm", "--num_train",
       "16", "--train_set_seed", "0", "--report_to", "none", "--per_device_train_batch_size", "4", "--max_steps", "6",
       "--save_model", "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", "--num_eval", "8",
       "--trainer", "guided", "--train_blocks", "1:"]
# fmt: on


def job(tmp_path, name, *more):
    return [*JOB, *more, "--output_dir", str(tmp_path / name), "--result_file", str(tmp_path / f"{name}.json")]


@pytest.mark.parametrize(
    "words", [["--train_as_classification"], ["--load_bfloat16"], ["--only_train_option", "False"]]
)
def test_a_killed_job_goes_on_to_the_same_bits_and_moves_what_adds_to_the_stream_alone(words, tmp_path):
    assert main(job(tmp_path, "whole", *words)) == 0
    with pytest.raises(Killed):
        experiment.run(parse(job(tmp_path, "cut", *words)), callbacks=[KillAfter(5)])
    assert main(job(tmp_path, "cut", *words)) == 0
    assert same(tmp_path / "whole", tmp_path / "cut")
    before, after = load_file(Path(MODEL) / "model.safetensors"), weights(tmp_path / "whole")
    moved = {name for name in after if not torch.equal(after[name], before[name].to(after[name]))}
    assert moved == {f"model.decoder.layers.1.{part}.weight" for part in ("self_attn.out_proj", "fc2")}
    found = json.loads((tmp_path / "whole.json").read_text())
    assert found["forwards"] == 6 + 2 * 5
    assert found["run"]["method"] == "guided"
    history = json.loads((tmp_path / "whole" / "trainer_state.json").read_text())["log_history"]
    assert all(0 < entry["slope_share"] < 2 for entry in history if "slope_share" in entry)


def test_passes_are_as_many_as_are_counted(tmp_path, monkeypatch):
    made_passes, proofs = [], []
    run, prove = ScoringEngine.run, ScoringEngine._measure
    monkeypatch.setattr(ScoringEngine, "run", lambda self, *a, **k: made_passes.append(1) or run(self, *a, **k))
    monkeypatch.setattr(ScoringEngine, "_measure", lambda self, plan: proofs.append(1) or prove(self, plan))
    assert main(job(tmp_path, "x", "--no_eval", "--train_blocks", "0:1", "--train_as_classification")) == 0
    told = json.loads((tmp_path / "x" / "trainer_state.json").read_text())["log_history"][-2]["forwards"]
    assert told == 6 + 2 * 5
    assert len(made_passes) - len(proofs) == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--guide_noise", "-1"], "argument --guide_noise: must be 0 or more, got -1"),
        (["--trainer", "zo", "--guide_noise", "1"], "--guide_noise is for --trainer guided: leave it out"),
        (["--trainer", "zo", "--guide_coefficients"], "--guide_coefficients is for --trainer guided: leave it out"),
        (["--zo_rounding", "compensated"], "keeps nothing beside the weights: leave --zo_rounding compensated out"),
        (["--bf16"], "mixed precision for gradients, and --trainer guided has none"),
        (["--learning_rate", "0"], "is a factor of the step that --trainer guided measures"),
        (["--save_trajectory"], "use it with --trainer zo"),
        (["--zo_offload", "cpu"], "use it with --trainer zo"),
        (["--prefix_tuning"], "not for --prefix_tuning"),
    ],
)
def test_what_cannot_be_is_one_line(words, told, tmp_path, capsys):
    assert main(job(tmp_path, "x", *words)) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1


def test_blocks_and_learning_rate_have_defaults_of_their_own():
    parsed = parse([*JOB[: JOB.index("--train_blocks")]])
    assert parsed.job.train_blocks == "-3:"
    assert parsed.training_kwargs["learning_rate"] == 1.0
    assert find_blocks(made(FAMILIES["llama"])).modules is not None


WORDS = {
    "plain": ["--train_as_classification", "--weight_decay", "0.1"],
    "coefficients": ["--train_blocks", "0:", "--guide_coefficients", "--load_bfloat16", "--num_dev", "4"],
    "noise": ["--guide_noise", "0.5"],
    "lora": ["--lora", "--gradient_accumulation_steps", "2"],
    "metric": ["--non_diff"],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_run_is_rebuilt_from_its_log_and_the_data(words, tmp_path, capsys):
    assert main(job(tmp_path, "x", *words)) == 0
    for to, there in (("6", tmp_path / "x"), ("4", tmp_path / "x" / "checkpoint-4")):
        given = ["replay", str(tmp_path / "x"), "--output", str(tmp_path / to), "--to", to]
        assert main(given) == 0, capsys.readouterr().err
        assert same(there, tmp_path / to)
    assert main(["log", str(tmp_path / "x")]) == 0
    assert "6 steps of" in capsys.readouterr().out


def test_a_log_is_that_of_the_whole_run_after_a_kill(tmp_path):
    assert main(job(tmp_path, "whole")) == 0
    with pytest.raises(Killed):
        experiment.run(parse(job(tmp_path, "cut")), callbacks=[KillAfter(5)])
    assert main(job(tmp_path, "cut", "--no_eval")) == 0, "in other words, which change no step"
    whole, cut = (read(tmp_path / name / "guided.log") for name in ("whole", "cut"))
    assert cut.steps == whole.steps
    assert len(cut.steps) == 6


def test_a_log_without_its_data_or_model_is_one_line(tmp_path, capsys):
    assert main(job(tmp_path, "x")) == 0
    other = tmp_path / "data" / "SST2"
    shutil.copytree(Path(DATA) / "SST2", other)
    lines = (other / "train.jsonl").read_text().splitlines()
    (other / "train.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    torch.manual_seed(1)
    hf.AutoModelForCausalLM.from_config(hf.AutoConfig.from_pretrained(MODEL)).save_pretrained(tmp_path / "model")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(MODEL) / name, tmp_path / "model")
    capsys.readouterr()
    for words, told in (
        (["--data_dir", str(tmp_path / "nowhere")], "a guided run is rebuilt with its task's data, and"),
        (["--data_dir", str(tmp_path / "data")], "the task's data is not what this run was trained on"),
        (["--model", str(tmp_path / "model")], "is not the model that this run started from"),
        (["--to", "7"], "holds 6 steps"),
    ):
        assert main(["replay", str(tmp_path / "x"), "--output", str(tmp_path / "out"), *words]) == 2
        error = capsys.readouterr().err.strip()
        assert told in error
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="made of its training rows: rebuild it with justforward replay"):
        justforward.load(tmp_path / "x")


def test_under_lora_the_outer_factors_of_the_stream_move_alone(tmp_path):
    assert main(job(tmp_path, "x", "--lora", "--train_as_classification")) == 0
    saved = load_file(tmp_path / "x" / "adapter_model.safetensors")
    assert {name.split("layers.1.")[1].split(".lora")[0] for name in saved} == {"self_attn.out_proj", "fc2"}
    assert all(value.any() for name, value in saved.items() if "lora_B" in name)


def test_f1_of_answers_is_optimised_along_the_likelihood_of_the_right_ones(tmp_path):
    words = ["--task_name", "SQuAD", "--non_diff", "--max_new_tokens", "4", "--num_eval", "4", "--num_train", "8"]
    assert main(job(tmp_path, "x", *words)) == 0
    history = json.loads((tmp_path / "x" / "trainer_state.json").read_text())["log_history"]
    entries = [entry for entry in history if "agreement" in entry]
    assert len(entries) == 6
    assert entries[-1]["forwards"] == 6 + 4 * 5
    assert all(entry["loss"] >= -1 for entry in entries), "the likelihood's"
