"""What else ranks try together: each function runs in all of them, and fails by raising."""

import copy
import pickle
import traceback
import warnings

import pytest
import torch
import torch.distributed as dist
from inputs import generator
from rank_cases import ROWS, WIDTH, of_group, tensors
from rank_costs import bytes_of_gather, memory_of_a_ring
from torch.utils.checkpoint import checkpoint

import mcr_fast
from mcr_fast import MCRLoss, NTXentLoss, SupConLoss, functional

EXCHANGES = ("gather", "ring")


def options_that_differ(rank, world):
    last = rank == world - 1
    x, labels = tensors(rank), torch.arange(ROWS)
    for more, said in (
        ({"temperature": 0.25 if last else 0.5}, "temperature (0.25 and 0.5)"),
        ({"exchange": "ring" if last else "gather"}, "exchange (gather and ring)"),
        ({"loss": "sup_con" if last else "nt_xent", "temperature": 1}, "loss (nt_xent and sup_con"),
        ({"x": tensors(0, width=7) if last else x}, "the width D (6 and 7)"),
        ({"x": [y.double() for y in x] if last else x}, "the dtype (torch.float32 and torch.float"),
        ({"x": tensors(0, modalities=3) if last else x}, "the number of modalities (2 and 3)"),
        ({"labels": None if last else labels}, "labels (None and integers)"),
        ({"labels": labels.float() if last else labels}, "labels (integers and floats)"),
    ):
        with pytest.raises(ValueError, match="all ranks of process_group must call") as error:
            of_group(**({"x": x, "labels": labels} | more))
        assert said in str(error.value)


def bad_arguments_of_one_rank(rank, world):
    labels = torch.arange(ROWS + (rank == 0))
    said = "labels must have shape" if rank == 0 else "another rank of process_group"
    with pytest.raises(ValueError, match=said):
        of_group(tensors(rank), labels)
    x = tensors(rank)
    for given, more, kind, said in (
        (x, {"backend": "cuda"}, RuntimeError, "not available for nt_xent with process_group="),
        ([y.detach().numpy() for y in x], {}, TypeError, "must be a tensor"),
    ):
        if rank == 0:
            with pytest.raises(kind, match=said):
                of_group(given, **more)
        else:
            with pytest.raises(ValueError, match="another rank of process_group"):
                of_group(x)


def differences_without_a_wait_are_nan(rank, world):
    labels = torch.arange(ROWS) if rank else None
    for more in (
        *({"exchange": e, "temperature": 0.25 if rank else 0.5} for e in EXCHANGES),
        *({"exchange": e, "labels": labels} for e in EXCHANGES),
        {"loss": "sup_con" if rank else "nt_xent", "temperature": 0.5},
    ):
        x = tensors(rank)
        loss = of_group(x, **more, rows=ROWS)
        loss.backward()
        assert loss.isnan()
        assert x[0].grad.isnan().all()


def more_rows_than_said(rank, world):
    for exchange in EXCHANGES:
        x, how = tensors(rank, ROWS + (rank == 1)), {"exchange": exchange, "rows": ROWS}
        if rank == 1:
            with pytest.raises(ValueError, match=r"rows=4 must be at least .*, got 5"):
                of_group(x, **how)
        else:
            assert of_group(x, **how).isnan()


def no_rank_has_rows(rank, world):
    for exchange, rows in ((*EXCHANGES[:1], None), ("ring", None), ("gather", 3), ("ring", 3)):
        x = tensors(rank, 0)
        loss = of_group(x, exchange=exchange, rows=rows)
        assert loss.item() == 0
        loss.backward()
        assert x[0].grad.shape == (0, WIDTH)


def bfloat16(rank, world):
    labels = torch.arange(ROWS * world) % 3
    everything = [torch.cat(of) for of in zip(*(tensors(r) for r in range(world)), strict=True)]
    rounded = [x.detach().bfloat16() for x in everything]
    for exchange in EXCHANGES:
        for loss in ("nt_xent", "sup_con"):
            alone = [x.double().requires_grad_() for x in rounded]
            wanted = getattr(functional, loss)(alone, labels, temperature=0.5)
            wanted.backward()
            cut = slice(rank * ROWS, (rank + 1) * ROWS)
            mine = [x[cut].clone().requires_grad_() for x in rounded]
            value = of_group(mine, labels[cut], loss, temperature=0.5, exchange=exchange)
            value.backward()
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), wanted, rtol=2e-3, atol=0)
            for x, y in zip(mine, alone, strict=True):
                assert x.grad.dtype == torch.bfloat16
                wanted_grad = y.grad[cut] * world
                error = (x.grad.double() - wanted_grad).norm() / wanted_grad.norm()
                assert error < 1e-2, error


def a_whole_step(rank, world):
    """L_Con over all ranks, L_MIPD and L_CEB over the rank's own rows."""
    warnings.filterwarnings("ignore", "MCRLoss: each of the .* processes trains its own head")
    for contrastive, exchange, sizes in (
        ("nt_xent", "gather", (5, 3, 4, 6)),
        ("sup_con", "ring", (5, 0, 1, 6)),
    ):
        sizes = sizes[:world]
        how = {"ceb_weight": 0.3, "mipd_weight": 0.7, "contrastive": contrastive}
        torch.manual_seed(0)
        of_all = MCRLoss(
            [WIDTH, WIDTH], 3, process_group=dist.group.WORLD, exchange=exchange, **how
        )
        local = copy.deepcopy(of_all)
        local.process_group = None
        fusion = torch.nn.Linear(2 * WIDTH, 3).double()
        for module in (of_all, local):
            module.double()
        latents = [tensors(9 + r, sizes[r], dtype=torch.float64) for r in range(world)]
        labels = torch.arange(sum(sizes)) % 3
        parts = labels.split(sizes)
        draws = [{"scheme": "uniform", "generator": generator(n)} for n in sizes]
        tables = [
            mcr_fast.sample_permutations(2, n, **of) for n, of in zip(sizes, draws, strict=True)
        ]
        given = {"fusion": fusion, "permutations": tables[rank]}
        out = of_all(latents[rank], parts[rank], **given)
        out.loss.backward()
        mine = [x.grad for x in latents[rank]]
        for x in latents[rank]:
            x.grad = None
        for r in range(world):
            step = local(latents[r], parts[r], fusion=fusion, permutations=tables[r])
            ((step.loss - step.contrastive) / world).backward()
            if r == rank:
                torch.testing.assert_close(out.mipd, step.mipd)
                torch.testing.assert_close(out.ceb, step.ceb)
        everything = [torch.cat(of) for of in zip(*latents, strict=True)]
        wanted = getattr(functional, contrastive)(everything, labels, temperature=0.5)
        wanted.backward()
        torch.testing.assert_close(out.contrastive, wanted, rtol=1e-9, atol=1e-9)
        terms = 0.7 * out.mipd + out.contrastive + 0.3 * out.ceb
        torch.testing.assert_close(out.loss, terms)
        for x, grad in zip(latents[rank], mine, strict=True):
            torch.testing.assert_close(grad / world, x.grad, rtol=1e-9, atol=1e-9)


def one_row_is_not_finite(rank, world):
    for exchange in EXCHANGES:
        for loss in ("nt_xent", "sup_con"):
            x = [y.detach().clone() for y in tensors(rank)]
            if rank == 0:
                x[0][1, 2] = float("nan")
            x = [y.requires_grad_() for y in x]
            value = of_group(x, torch.arange(ROWS) % 2, loss, exchange=exchange)
            if rank == world - 1:  # nobody is waited for in the backward
                value.backward()
                assert x[1].grad.isnan().all()
            assert value.isnan()


def no_positives_and_a_row_that_is_not_finite(rank, world):
    """As the local losses: no term, no gradient, whatever the rows hold."""
    for exchange in EXCHANGES:
        for loss in ("nt_xent", "sup_con"):
            (x,) = tensors(rank, modalities=1)
            x = x.detach().clone()
            x[0, 0] = float("nan") if rank == 0 else x[0, 0]
            x.requires_grad_()
            value = of_group(x, torch.arange(ROWS) + ROWS * rank, loss, exchange=exchange)
            value.backward()
            assert value.item() == 0
            assert torch.equal(x.grad, torch.zeros_like(x))


def written_to_afterwards(rank, world):
    """Neither the loss nor the embeddings are what the backward reads."""
    leaf = tensors(rank, modalities=1)[0]
    labels = torch.arange(ROWS) % 2
    (wanted,) = torch.autograd.grad(of_group(leaf * 2, labels), leaf)
    x = leaf * 2
    loss = of_group(x, labels)
    loss += 1.0
    x.mul_(3)
    assert torch.equal(torch.autograd.grad(loss, leaf)[0], wanted)


def groups_of_two(rank, world):
    groups = [dist.new_group([first, first + 1]) for first in range(0, world, 2)]
    mine, partner = groups[rank // 2], rank ^ 1
    of_both = (tensors(min(rank, partner)), tensors(max(rank, partner)))
    both = [torch.cat(of) for of in zip(*of_both, strict=True)]
    alone = [x.detach().requires_grad_() for x in both]
    labels = torch.arange(2 * ROWS) % 2
    wanted = functional.nt_xent(alone, labels)
    wanted.backward()
    x, cut = tensors(rank), slice(ROWS * (rank % 2), ROWS * (rank % 2 + 1))
    for exchange in EXCHANGES:
        for y in x:
            y.grad = None
        loss = of_group(x, labels[cut], process_group=mine, exchange=exchange)
        loss.backward()
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(x[0].grad / 2, alone[0].grad[cut])
    if world == 4:
        with pytest.raises(ValueError, match="does not contain this rank"):
            of_group(x, process_group=groups[1 - rank // 2])


def a_mesh(rank, world):
    x = tensors(rank)
    wanted = of_group(x)
    mesh = dist.init_device_mesh("cpu", (world,), mesh_dim_names=("dp",))
    assert torch.equal(of_group(x, process_group=mesh), wanted)
    assert torch.equal(NTXentLoss(process_group=mesh["dp"])(x), wanted)
    square = dist.init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("a", "b"))
    with pytest.raises(ValueError, match="DeviceMesh of 1 dimension, got 2"):
        of_group(x, process_group=square)
    with pytest.raises(TypeError, match="must be a torch.distributed.ProcessGroup"):
        of_group(x, process_group="world")


def one_process(rank, world):
    group = [dist.new_group([r]) for r in range(world)][rank]
    x = tensors(rank)
    assert torch.equal(of_group(x, process_group=group), functional.nt_xent(x))
    latents, given = tensors(rank, 16), {"fusion": torch.nn.Linear(2 * WIDTH, 3)}
    losses = [MCRLoss([WIDTH, WIDTH], 3, process_group=g) for g in (group, None)]
    ours, alone = (mcr(latents, None, **given, generator=generator(1)) for mcr in losses)
    assert torch.equal(ours.loss, alone.loss)
    with pytest.raises(ValueError, match="rows=3 must be at least"):
        of_group(x, process_group=group, rows=3)


def copies_and_files(rank, world):
    x, group = tensors(rank), dist.group.WORLD
    for loss in (NTXentLoss(process_group=group), SupConLoss(process_group=group, exchange="ring")):
        again = copy.deepcopy(loss)
        assert again.process_group is group
        assert torch.equal(again(x), loss(x))
        assert loss.state_dict() == {}
        assert "process_group" in repr(loss)
        with pytest.raises(TypeError, match=r"save module.state_dict\(\)"):
            pickle.dumps(loss)
        loss.process_group = None
        assert pickle.loads(pickle.dumps(loss)).process_group is None


def same_bits(rank, world):
    for exchange in EXCHANGES:
        for loss in ("nt_xent", "sup_con"):
            x = tensors(rank, 9)
            made = []
            for _ in range(2):
                value = of_group(x, torch.arange(9) % 4, loss, exchange=exchange)
                made.append((value, torch.autograd.grad(value, x)))
            assert torch.equal(made[0][0], made[1][0])
            assert all(torch.equal(a, b) for a, b in zip(made[0][1], made[1][1], strict=True))


def modes(rank, world):
    x = tensors(rank)
    loss = of_group(x)
    (first,) = torch.autograd.grad(loss, x[:1], retain_graph=True)
    (again,) = torch.autograd.grad(3 * loss, x[:1], create_graph=True)
    torch.testing.assert_close(again, 3 * first)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        again.sum().backward()
    with torch.no_grad():
        assert torch.equal(of_group(x), loss)
    with torch.inference_mode():
        assert torch.equal(of_group(x), loss)
    # one rank wants no gradient: agreed before anybody waits
    assert torch.equal(of_group([y.detach() for y in x] if rank == 0 else x), loss)
    y = x[0].detach()
    for run in (
        lambda f: torch.func.grad(f)(y),
        lambda f: torch.func.vmap(f)(y[None]),
        lambda f: torch.func.jvp(f, (y,), (y,)),
    ):
        with pytest.raises(NotImplementedError, match="nt_xent with process_group="):
            run(lambda z: of_group([z, z]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(of_group(x), loss)


def draws(rank, world):
    """Ranks draw different donors from equal generators, which end where they would without."""
    latents, labels = tensors(3, 16), torch.arange(16)
    fusion, group = torch.nn.Linear(2 * WIDTH, 3), dist.group.WORLD
    loss = MCRLoss([WIDTH, WIDTH], 3, num_permutations=3, contrastive_weight=0, process_group=group)
    for scheme, perturbation in (
        ("cyclic", "permute"),
        ("uniform", "permute"),
        ("cyclic", "noise"),
    ):
        loss.scheme, loss.perturbation = scheme, perturbation
        g = generator(5)
        ours = loss(latents, labels, fusion=fusion, generator=g).mipd.detach()
        of_ranks = [torch.empty(()) for _ in range(world)]
        dist.all_gather(of_ranks, ours)
        assert len({x.item() for x in of_ranks}) == world, of_ranks
        other, loss.process_group = generator(5), None
        alone = loss(latents, labels, fusion=fusion, generator=other).mipd
        loss.process_group = group
        assert torch.equal(g.get_state(), other.get_state())
        assert torch.equal(of_ranks[0], alone)


def checkpoints(rank, world):
    latents, labels = tensors(3, 16), torch.arange(16)
    fusion = torch.nn.Linear(2 * WIDTH, 3)
    loss = MCRLoss([WIDTH, WIDTH], 3, num_permutations=3, process_group=dist.group.WORLD)

    def step(*z):
        return loss(z, labels, fusion=fusion, generator=g).loss

    grads = []
    for run in (lambda *z: step(*z), lambda *z: checkpoint(step, *z, use_reentrant=False)):
        g = generator(5)
        grads.append(torch.autograd.grad(run(*latents), latents))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


def compiled(rank, world):
    if world != 2:
        return
    x = tensors(rank)
    wanted = torch.autograd.grad(of_group(x), x)
    loss = NTXentLoss(process_group=dist.group.WORLD)
    mcr = MCRLoss([WIDTH, WIDTH], 3, mipd_weight=0, process_group=dist.group.WORLD)
    fusion = torch.nn.Linear(2 * WIDTH, 3)
    for f in (
        lambda *y: of_group(list(y)),
        lambda *y: loss(list(y)),
        lambda *y: mcr(list(y), None, fusion=fusion).loss,
    ):
        run = torch.compile(lambda *y, f=f: f(*(2 * z for z in y)) * 2, backend="eager")
        found = torch.autograd.grad(run(*x), x)
        torch.testing.assert_close(found[0], 2 * wanted[0])  # the loss does not feel lengths


TRIES = {
    f.__name__: f
    for f in (
        options_that_differ,
        bad_arguments_of_one_rank,
        differences_without_a_wait_are_nan,
        more_rows_than_said,
        no_rank_has_rows,
        bfloat16,
        bytes_of_gather,
        memory_of_a_ring,
        a_whole_step,
        one_row_is_not_finite,
        no_positives_and_a_row_that_is_not_finite,
        written_to_afterwards,
        groups_of_two,
        a_mesh,
        one_process,
        copies_and_files,
        same_bits,
        modes,
        draws,
        checkpoints,
        compiled,
    )
}


def tried(attempt, rank, world):
    """What went wrong, or nothing."""
    try:
        with warnings.catch_warnings():
            attempt(rank, world)
    except BaseException:  # an assertion of pytest.raises is none of Exception
        return traceback.format_exc()
    return ""
