"""What torchrun starts with one rank: FSDP2's shards against the model left whole, to the bit.

`python -m torch.distributed.run --standalone --nproc_per_node 1 -m bench.gpu.sharded DEVICE`. The command line refuses
--fsdp for one process, which has nobody to share with; so this is the library's own call.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bench.common import compare, report
from bench.gpu.where import Where
from bench.workload import model_of, prompts_of
from justforward.optim import MeZO
from justforward.optim.distribution.shards import shard

STEPS = 5
KINDS = ((torch.float32, "nearest"), (torch.bfloat16, "stochastic"), (torch.bfloat16, "compensated"))


def weights(model: nn.Module) -> Mapping[str, Tensor]:
    """All of them, gathered."""
    return {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}


def against_whole(where: Where, dtype: torch.dtype, rounding: str) -> None:
    """The same steps of a model and of its shards."""
    shape = where.pick("350m", "tiny")
    ids = torch.tensor(prompts_of(4, 500), device=where.device)
    plain, parted = (model_of(shape, dtype, where.device) for _ in range(2))
    shard(parted, torch.device(where.device))
    assert any(isinstance(p, DTensor) for p in parted.parameters())
    gradients: list[list[tuple[float, ...]]] = []
    steps = {}
    for name, model, probe in (("whole", plain, "copy"), ("shards", parted, "auto")):
        mezo = MeZO(model.named_parameters(), lr=1e-6, eps=1e-3, model=model, probe=probe, rounding=rounding)
        steps[name] = lambda mezo=mezo, model=model: mezo.step(lambda: model(input_ids=ids, labels=ids).loss.float())
        gradients.append([])
        for _ in range(STEPS):
            steps[name]()
            assert mezo.last is not None
            gradients[-1].append(mezo.last.projected_grads)
    a, b = weights(plain), weights(parted)
    what = f"OPT-{shape}, {dtype}, {rounding} rounding"
    equal = {"losses": gradients[0] == gradients[1], "weights": all(torch.equal(a[n], b[n]) for n in a)}
    report(f"FSDP2, one rank, {dist.get_backend()}: {what}", equal=equal, goal="equal", device=where.device)
    compare(
        f"FSDP2, one rank, beside other jobs: shards / whole, {what}", steps, device=where.device, runs=where.pick(5, 1)
    )


def main(device: str) -> None:
    """See the module."""
    where = Where(device)
    dist.init_process_group(where.pick("nccl", "gloo"))
    try:
        one = torch.ones(1, device=device)
        dist.all_reduce(one)
        assert one.item() == dist.get_world_size()
        for dtype, rounding in KINDS:
            against_whole(where, dtype, rounding)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
