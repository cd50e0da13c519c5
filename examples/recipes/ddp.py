"""DistributedDataParallel, one process a GPU, or a few on a CPU: the same file for both.

    torchrun --nproc_per_node 2 examples/recipes/ddp.py [--epochs 40] [--accumulate 1]

NCCL where there is CUDA, gloo elsewhere. The model is wrapped as a whole, with the objective in it.
"""

import argparse
import os
from contextlib import nullcontext

import torch
import torch.distributed as dist
from digits import BATCH, HALVES, TwoHalves, accuracy, load, make_objective, report
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from mcr_fast import MCRMonitor


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=1, help="batches of one step")
    return parser.parse_args()


def step(model, optimizer, batches, device) -> None:
    """One update from a few batches: the mean of their gradients over batches and processes.

    L_MIPD, L_CEB and the task losses are means over rows, so theirs is the gradient of one batch of
    all rows. L_Con compares the rows of one batch, those of all processes.
    """
    for index, batch in enumerate(batches):
        last = index + 1 == len(batches)
        with nullcontext() if last else model.no_sync():
            out = model(*(x.to(device) for x in batch))
            (out.loss / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    arguments = parse()
    on_gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(1)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    rank, group = dist.get_rank(), dist.group.WORLD
    torch.manual_seed(0)  # the loss, which knows the group, draws other permutations on each rank
    train, test = load()
    model = TwoHalves(make_objective(group, warmup=100)).to(device)
    model = DistributedDataParallel(model, device_ids=[local_rank] if on_gpu else None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = MCRMonitor(HALVES, every=20, process_group=group)
    monitor.watch(model.module.objective)
    sampler = DistributedSampler(train, seed=0)
    loader = DataLoader(
        train, batch_size=BATCH // dist.get_world_size(), sampler=sampler, drop_last=True
    )
    for epoch in range(arguments.epochs):
        sampler.set_epoch(epoch)
        model.module.objective.set_epoch(epoch)  # for a window in epochs
        batches = []
        for batch in loader:
            batches.append(batch)
            if len(batches) == arguments.accumulate:
                step(model, optimizer, batches, device)
                batches = []
        if (epoch + 1) % 10 == 0 or epoch + 1 == arguments.epochs:
            seen = monitor.read()  # on all ranks: it averages over them
            if rank == 0:
                print(report(epoch, seen, accuracy(model.module, test)))
    summary = monitor.summary()
    if rank == 0:
        print(summary)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
