"""DistributedDataParallel around a fusion and around a model: gradients are averaged, once."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from inputs import generator, make_fusion, make_latents
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mcr_fast
from mcr_fast import MCRLoss

ROWS, C, D, WORLD = 5, 3, 4, 2
CASES = [
    *(("linear", "model"), ("gated", "model")),
    *((kind, "fusion") for kind in ("linear", "sequential", "additive", "gated")),
]


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.encoders = nn.ModuleList(nn.Linear(D, D) for _ in range(2)).double()
        self.fusion = make_fusion(kind, 1, 2).fusion
        self.mcr = MCRLoss([D, D], C, mipd_weight=1.0, strategy="independent")

    def forward(self, xs):
        latents = [encode(x) for encode, x in zip(self.encoders, xs, strict=True)]
        table = mcr_fast.sample_permutations(3, ROWS, generator=generator(2))
        out = self.mcr(latents, None, fusion=self.fusion, permutations=table)
        return out.loss + out.logits.square().mean()


def build(kind):
    torch.manual_seed(0)
    return Model(kind)


def inputs_of(rank):
    return [x.detach() for x in make_latents(10 + rank, 2, ROWS)]


def gradients(model, rank):
    model.zero_grad()
    model(inputs_of(rank)).backward()
    return [p.grad for p in model.parameters()]


def named_gradients(rank, kind, what):
    model = build(kind)
    if what == "model":
        outer = DistributedDataParallel(model)
    else:
        outer = model
        model.fusion = DistributedDataParallel(model.fusion)
    for _ in range(2):  # a second step finds the first one reduced
        grads = gradients(outer, rank)
    names = [name.replace("module.", "") for name, _ in outer.named_parameters()]
    return dict(zip(names, [g.tolist() for g in grads], strict=True))


def worker(rank, port, queue):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    for case in CASES:
        queue.put((rank, case, named_gradients(rank, *case)))
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def found():
    """Gradients by rank and case: the processes take longer to start than to run them all."""
    context = mp.get_context("spawn")
    queue, port = context.Queue(), free_port()
    workers = [context.Process(target=worker, args=(r, port, queue)) for r in range(WORLD)]
    for process in workers:
        process.start()
    answers = [queue.get(timeout=120) for _ in range(WORLD * len(CASES))]
    for process in workers:
        process.join(60)
        assert process.exitcode == 0
    return {(rank, case): grads for rank, case, grads in answers}


@pytest.mark.parametrize(("kind", "what"), CASES)
def test_gradients_are_the_mean_over_processes(kind, what, found):
    model = build(kind)
    alone = [gradients(model, rank) for rank in range(WORLD)]
    names = [name for name, _ in model.named_parameters()]
    for p, name in enumerate(names):
        wanted = [grads[p] for grads in alone]
        if what == "model" or name.startswith("fusion"):
            wanted = [sum(wanted) / WORLD] * WORLD
        for rank in range(WORLD):
            ours = torch.tensor(found[rank, (kind, what)][name], dtype=torch.float64)
            torch.testing.assert_close(ours, wanted[rank])
