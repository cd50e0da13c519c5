"""Over a process group the monitor's means are those of all ranks' rows, in one all-reduce."""

import socket
from datetime import timedelta
from queue import SimpleQueue
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from monitored import NAMES, Game

from mcr_fast import MCRMonitor

pytestmark = pytest.mark.process("beside")

WORLD = 2
ROWS = {"even": (6, 6), "uneven": (7, 2), "an empty rank": (5, 0)}
SEED = {0: 3, 1: 4}


def run(rank, rows, group):
    """What a rank reads and writes, and how many collectives it took."""
    log, monitor = [], None
    monitor = MCRMonitor(
        NAMES, every=2, log=lambda step, _: log.append(step), process_group=group, stride=1
    )
    game = Game(rows[rank], seed=SEED[rank])
    for _ in range(3):
        game.step(monitor)
    with mock.patch.object(dist, "all_reduce", side_effect=dist.all_reduce) as reduce:
        values = monitor.read()
    return values, log, reduce.call_count, monitor.end_epoch()


def never_stepped(rank):
    """A rank that has seen no batch joins in."""
    monitor = MCRMonitor(NAMES, every=None, process_group="world")
    if rank == 0:
        Game(seed=5).step(monitor)
    return monitor.read()


def told(rank):
    """One rank asks for words, and there is no record yet: these, and those of its rows alone."""
    monitors = [MCRMonitor(NAMES, every=None, process_group=group) for group in ("world", None)]
    for monitor in monitors:
        torch.manual_seed(0)
        Game(seed=rank).step(monitor)
    with mock.patch.object(dist, "all_reduce") as reduce:  # which would wait for the others
        words = [monitor.summary() for monitor in monitors]
    return words, reduce.call_count


def contrasted(rank, group):
    """The parts where L_Con is over all ranks, and by autograd; and the gradients, unwatched."""
    found = []
    for watched in (True, False):
        game, monitor = Game(6 - rank, seed=rank, process_group=group), MCRMonitor(NAMES)
        second = MCRMonitor(NAMES)
        if watched:
            monitor.watch(game.mcr)
            second.watch(game.mcr)
        torch.manual_seed(0)
        latents, out, _ = game.forward()
        task = torch.nn.functional.cross_entropy(out.logits, game.labels)
        terms = {"grad_task": task, "grad_regularizer": out.loss, "grad_mipd": 0.1 * out.mipd}
        grads = {
            name: torch.autograd.grad(x, latents, retain_graph=True) for name, x in terms.items()
        }
        monitor.reset()
        second.reset()  # the ones above were heard too
        (task + out.loss).backward()
        found.append([p.grad.tolist() for p in game.encoders.parameters()])
        if watched:
            norms = {
                f"{name}/{m}": g.norm().item()
                for name, of_each in grads.items()
                for m, g in zip(NAMES, of_each, strict=True)
            }
            both = zip(NAMES, grads["grad_task"], grads["grad_regularizer"], strict=True)
            for m, *parts in both:
                flat = (x.flatten() for x in parts)
                norms[f"grad_cosine/{m}"] = torch.cosine_similarity(*flat, dim=0).item()
            values, second_values = monitor.read(), second.read()
    return values, second_values, norms, found


def worker(rank, address, queue):
    torch.set_num_threads(1)
    limit = timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=WORLD, timeout=limit)
    group = dist.group.WORLD
    found = {(rank, name): run(rank, rows, group) for name, rows in ROWS.items()}
    found[rank, "contrasted"] = contrasted(rank, group)
    found[rank, "never"] = never_stepped(rank)
    found[rank, "told"] = told(rank)
    queue.put(found)
    dist.barrier()
    dist.destroy_process_group()
    return found


@pytest.fixture(scope="module")
def found():
    context, threads = mp.get_context("spawn"), torch.get_num_threads()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{s.getsockname()[1]}"
    queue = context.Queue()
    other = context.Process(target=worker, args=(1, address, queue))
    other.start()
    try:
        results = worker(0, address, SimpleQueue()) | queue.get(timeout=120)
    finally:
        torch.set_num_threads(threads)
    other.join(60)
    assert other.exitcode == 0
    return results


@pytest.mark.parametrize("name", ROWS)
def test_means_are_over_all_ranks(name, found):
    values, log, collectives, epoch = found[0, name]
    assert collectives == 1
    assert log == [2]
    others, no_log, _, _ = found[1, name]
    assert no_log == []
    assert values == pytest.approx(others, nan_ok=True)
    assert epoch == pytest.approx(found[1, name][3], nan_ok=True)

    alone = []
    for rank, rows in enumerate(ROWS[name]):
        monitor, game = (
            MCRMonitor(NAMES, every=None, window=2, stride=1),
            Game(rows, seed=SEED[rank]),
        )
        for _ in range(3):
            game.step(monitor)
        alone.append((rows, monitor.read()))
    total = sum(ROWS[name])
    for key in ("loss", "divergence/audio", "accuracy", "grad_task/image", "grad_cosine/audio"):
        wanted = sum(rows * numbers[key] for rows, numbers in alone if rows) / total
        assert values[key] == pytest.approx(wanted, rel=1e-5), key
    share = values["divergence/audio"] / (values["divergence/audio"] + values["divergence/image"])
    assert values["importance/audio"] == pytest.approx(share)


def test_a_rank_without_a_batch_joins_in(found):
    assert found[0, "never"] == pytest.approx(found[1, "never"], nan_ok=True)
    assert found[0, "never"]["loss"] > 0


@pytest.mark.parametrize("rank", range(WORLD))
def test_words_before_a_record_take_no_collective(rank, found):
    (words, of_its_rows), collectives = found[rank, "told"]
    assert collectives == 0
    assert words == of_its_rows
    assert "importance" in words


@pytest.mark.parametrize("rank", range(WORLD))
def test_gradients_apart_with_a_contrastive_term_over_ranks(rank, found):
    values, of_second_monitor, norms, (watched, unwatched) = found[rank, "contrasted"]
    for name, wanted in norms.items():
        assert values[name] == pytest.approx(wanted, rel=1e-4, abs=1e-6), name
        assert of_second_monitor[name] == values[name], name
    assert watched == unwatched
