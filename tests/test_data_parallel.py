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
WAYS = ("linear", "sequential", "additive", "gated")


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


def worker(rank, port, kind, what, queue):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    model = build(kind)
    if what == "model":
        outer = DistributedDataParallel(model)
    else:
        outer = model
        model.fusion = DistributedDataParallel(model.fusion)
    for _ in range(2):  # a second step finds the first one reduced
        grads = gradients(outer, rank)
    names = [name.replace("module.", "") for name, _ in outer.named_parameters()]
    queue.put((rank, dict(zip(names, [g.tolist() for g in grads], strict=True))))
    dist.barrier()
    dist.destroy_process_group()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    ("kind", "what"),
    [("linear", "model"), ("gated", "model"), *((kind, "fusion") for kind in WAYS)],
)
def test_gradients_are_the_mean_over_processes(kind, what):
    context = mp.get_context("spawn")
    queue, port = context.Queue(), free_port()
    arguments = [(rank, port, kind, what, queue) for rank in range(WORLD)]
    workers = [context.Process(target=worker, args=a) for a in arguments]
    for process in workers:
        process.start()
    found = dict(queue.get(timeout=120) for _ in workers)
    for process in workers:
        process.join(60)
        assert process.exitcode == 0
    model = build(kind)
    alone = [gradients(model, rank) for rank in range(WORLD)]
    names = [name for name, _ in model.named_parameters()]
    for p, name in enumerate(names):
        wanted = [grads[p] for grads in alone]
        if what == "model" or name.startswith("fusion"):
            wanted = [sum(wanted) / WORLD] * WORLD
        for rank in range(WORLD):
            ours = torch.tensor(found[rank][name], dtype=torch.float64)
            torch.testing.assert_close(ours, wanted[rank])
