"""Processes that a test talks to: started once for all that is tried in them."""

import pickle
import socket
from datetime import timedelta
from queue import SimpleQueue

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LIMIT = 120  # seconds, after which a collective that somebody is missing from fails


def run_in_ranks(work, world):
    """What `work(rank, world)` returns in each of the processes, by rank; this one is rank 0.

    `work` is a function of a module, what it returns has to be picklable.
    """
    context, threads = mp.get_context("spawn"), torch.get_num_threads()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    queue = context.Queue()
    others = [
        context.Process(target=_rank, args=(work, rank, world, address, queue))
        for rank in range(1, world)
    ]
    for process in others:
        process.start()
    mine = SimpleQueue()
    try:
        _rank(work, 0, world, address, mine)
        found = [
            pickle.loads(mine.get()),
            *(pickle.loads(queue.get(timeout=LIMIT)) for _ in others),
        ]
    finally:
        torch.set_num_threads(threads)
        for process in others:
            process.join(LIMIT)
            process.kill()
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]


def _rank(work, rank, world, address, queue):
    torch.set_num_threads(1)
    limit = timedelta(seconds=LIMIT)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=limit)
    try:
        queue.put(pickle.dumps((rank, work(rank, world))))
        dist.barrier()
    finally:
        dist.destroy_process_group()


def found_by_rank_0(worker, worlds, limit):
    """What rank 0 of each world sends: dictionaries, merged; anything else is an error's text.

    `worker(rank, world, port, queue)` is a function of a module, and starts its group itself.
    """
    context = mp.get_context("spawn")
    queue, processes = context.Queue(), []
    for world in worlds:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        for rank in range(world):
            processes.append(context.Process(target=worker, args=(rank, world, port, queue)))
    for process in processes:
        process.start()
    found = {}
    try:
        for _ in worlds:
            sent = queue.get(timeout=limit)
            assert isinstance(sent, dict), sent
            found |= sent
    finally:
        for process in processes:
            process.join(30)
            process.kill()
    assert [process.exitcode for process in processes] == [0] * len(processes)
    return found
