"""What several processes check together; tests/e2e/test_ranks.py starts torchrun ... -m support.ranks FOLDER CHECKS."""

from __future__ import annotations

import copy
import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from justforward.optim import CounterNoise, MeZO
from justforward.optim.build import build
from justforward.optim.distribution.ranks import RankError, Ranks, gathered
from justforward.optim.distribution.shards import shard
from justforward.optim.methods import METHODS as ZO_METHODS
from justforward.optim.probes.closures import Shares
from justforward.training.resuming import agreed
from support.families import tiny

STEPS = 20
METHODS = ("lozo-m", "conmezo", "adamezo", "zo-adam", "eggroll", "grzo")


def batches(step: int) -> Tensor:
    """[8, 12] token ids: what all ranks see of a step, together."""
    return torch.randint(3, 97, (8, 12), generator=torch.Generator().manual_seed(step))


def train(model: nn.Module, mezo: MeZO, steps: int = STEPS) -> list[tuple[float, ...]]:
    """Train on this rank's share of every batch; the projected gradients of every step."""
    ranks, found = Ranks.current(mezo.direction_groups), []
    for step in range(steps):
        share = batches(step).chunk(ranks.members)[ranks.member]
        shares = _shares(model, mezo, share) if mezo.split else None
        closure = lambda share=share: model(input_ids=share, labels=share).loss.float()  # noqa: E731
        mezo.estimate(closure, weight=len(share), shares=shares)
        mezo.step()
        assert mezo.last is not None
        found.append(mezo.last.projected_grads)
    return found


def _shares(model: nn.Module, mezo: MeZO, share: Tensor) -> Shares:
    """The rows of all ranks, divided among the directions."""
    ranks = Ranks.current()
    owner = [(ranks.rank * len(share) + i) * mezo.samples // (ranks.size * len(share)) for i in range(len(share))]

    def alone(direction: int) -> Tensor | float:
        own = share[[o == direction for o in owner]]
        return model(input_ids=own, labels=own).loss.float() * len(own) * mezo.samples / len(share) if len(own) else 0.0

    return Shares(mezo.samples, alone)


def optimizer(model: nn.Module, **settings) -> MeZO:
    return MeZO(model.named_parameters(), lr=1e-3, eps=1e-2, model=model, seed=3, **settings)


def whole(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in model.named_parameters()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def trajectory(folder: Path, samples: int, groups: int) -> None:
    """Train, and save what rank 0 ends with; all ranks must hold the same."""
    model = tiny("llama")
    settings = {"samples": samples, "direction_groups": groups}
    grads = train(model, optimizer(model, check_every=5, **settings))
    if Ranks.current().rank == 0:
        torch.save({"grads": grads, "weights": whole(model)}, folder / "trajectory.pt")


def methods(folder: Path) -> None:
    """The same of methods with other directions and rules."""
    ends = {}
    for name in METHODS:
        model, method = tiny("llama"), ZO_METHODS[name]
        noise, rule = build(method.directions, method.rule, {}, {**method.settings, "rank": 4, "refresh": 2})
        settings = {"samples": 4 if method.split else 1, "split": method.split, "shaping": method.shaping}
        mezo = optimizer(model, check_every=2, noise=noise, rule=rule, **settings)
        grads = train(model, mezo, steps=4)
        ends[name] = {"grads": grads, "weights": whole(model)}
    if Ranks.current().rank == 0:
        torch.save(ends, folder / "methods.pt")


def continued(folder: Path) -> None:
    """One rank has found the log, the other a checkpoint of its last step."""
    where, rank = folder, Ranks.current().rank
    (folder / "trajectory.log").touch()
    gathered(None)
    found = [f"{folder}/trajectory.log", f"{folder}/checkpoint-5"]
    assert agreed(lambda: found[rank], where) == found[0]
    assert agreed(lambda: None, where) is None
    assert agreed(lambda: found[1], where) == found[1]
    with pytest.raises(ValueError, match="not all machines have what is to be continued"):
        agreed(lambda: [None, found[1]][rank], where)

    def look() -> None:
        if rank == 1:
            raise ValueError("of rank 1")

    with pytest.raises(ValueError, match="of rank 1"):
        agreed(look, where)


def sharded(_: Path, family: str = "llama") -> None:
    """FSDP2 against replicas, to the bit, in every dtype and rounding; on the probe's weights too."""
    for dtype, rounding in (
        (torch.float32, "nearest"),
        (torch.bfloat16, "stochastic"),
        (torch.bfloat16, "compensated"),
    ):
        plain = tiny(family, dtype=dtype)
        parted = copy.deepcopy(plain)
        shard(parted, torch.device("cpu"))
        start = whole(plain) | {}
        start = {n: p.clone() for n, p in start.items()}
        one = train(plain, optimizer(plain, rounding=rounding, probe="copy"))
        two = train(parted, optimizer(parted, rounding=rounding))
        assert one == two, (dtype, one[:3], two[:3])
        assert equal(whole(plain), whole(parted)), dtype
        assert not equal(whole(plain), start)


def tensor_parallel(_: Path) -> None:
    """The same steps applied to a model cut by columns and by rows: gathered, its weights are the whole model's."""
    plain = tiny("llama")
    parted = copy.deepcopy(plain)
    cut = {"q_proj": ColwiseParallel(), "o_proj": RowwiseParallel(), "up_proj": ColwiseParallel()}
    cut |= {"gate_proj": ColwiseParallel(), "down_proj": RowwiseParallel()}
    for layer in parted.model.layers:  # type: ignore[union-attr]
        for name, style in cut.items():
            owner = layer.self_attn if name in ("q_proj", "o_proj") else layer.mlp  # type: ignore[union-attr]
            parallelize_module(owner, init_device_mesh("cpu", (dist.get_world_size(),)), {name: style})
    assert any(isinstance(p, DTensor) for p in parted.parameters())
    mine, other = optimizer(plain), optimizer(parted, probe="copy")
    for step in range(STEPS):
        for mezo in (mine, other):
            mezo.apply_logged([0.3 * (step % 5) - 0.6])
    assert equal(whole(plain), whole(parted))
    z = CounterNoise()
    z.add_(list(parted.named_parameters()), seed=1, step=2, sample=0, scales=[1.0] * 99, decays=[0.0] * 99)
    z.add_(list(plain.named_parameters()), seed=1, step=2, sample=0, scales=[1.0] * 99, decays=[0.0] * 99)
    assert equal(whole(plain), whole(parted))


def uneven(_: Path) -> None:
    """Three ranks are no two equal groups."""
    with pytest.raises(ValueError, match="3 ranks cannot form 2 equal groups"):
        Ranks.current(2)


def corrupted(_: Path, at: int) -> None:
    """One bit of one rank's weights flips: every rank stops, and names it."""
    model = tiny("opt")
    mezo = optimizer(model, check_every=4)
    train(model, mezo, 4)
    if Ranks.current().rank == at:
        with torch.no_grad():
            next(model.parameters()).view(torch.int32)[3, 5] ^= 1 << 16  # a lower bit might be rounded away again
    with pytest.raises(RankError, match=f"step 8: the weights of rank {at}"):
        train(model, mezo, 4)


def main(folder: str, checks: str) -> None:
    """Make the checks, each in a folder of its own, where every rank leaves "passed" or what went wrong."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name, *arguments in json.loads(checks):
        place = Path(folder, "-".join(map(str, [name, *arguments])))
        place.mkdir(exist_ok=True)
        try:
            globals()[name](place, *arguments)
            told = "passed"
        except BaseException:
            told = traceback.format_exc()
        (place / f"{Ranks.current().rank}.txt").write_text(told)
        if told != "passed":
            raise SystemExit(told)  # the others may wait for this rank
    gathered(None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
