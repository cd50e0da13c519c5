"""DistributedDataParallel around a fusion and around a model: gradients are averaged, once."""

import socket
from datetime import timedelta
from queue import SimpleQueue

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


def worker(rank, address, queue):
    torch.set_num_threads(1)
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD, timeout=limit)
    found = {(rank, case): named_gradients(rank, *case) for case in CASES}
    queue.put(found)
    dist.barrier()
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def found():
    """Gradients by rank and case; one process more takes longer to start than to run them all."""
    context, threads = mp.get_context("spawn"), torch.get_num_threads()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    queue = context.Queue()
    other = context.Process(target=worker, args=(1, address, queue))
    other.start()
    try:
        gradients = worker(0, address, SimpleQueue()) | queue.get(timeout=120)
    finally:
        torch.set_num_threads(threads)
    other.join(60)
    assert other.exitcode == 0
    return gradients


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
