"""`MCRLoss` in eval mode: statistics of a fixed draw, and nobody's random numbers are moved."""

import copy
from unittest import mock

import pytest
import torch
from inputs import generator, make_latents
from regularizer import LABELS, WAYS, D, N, mcr, setting
from torch.nn.functional import cross_entropy

from mcr_fast import sample_permutations
from mcr_fast._fixed import Fixed
from mcr_fast._watch import EVERY
from mcr_fast.mipd import engine
from mcr_fast.ops import regularizer as regularizer_op

ROWS = 9
DRAWS = [
    {},
    {"scheme": "uniform"},
    {"perturbation": "noise"},
    {"perturbation": "zero"},
    {"shared_donor": True},
]


def evaluated(num_modalities=3, **options):
    return mcr(num_modalities, num_permutations=3, **options).eval()


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("options", DRAWS, ids=str)
def test_the_same_bits_every_time_and_no_generator_moves(kind, options):
    fusion, latents = setting(kind, 3, ROWS)
    loss = evaluated(**options)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    expected = loss(latents, None, fusion=fusion)
    torch.manual_seed(1)
    loss(latents[:1] + [z.flip(0) for z in latents[1:]], None, fusion=fusion)  # others between
    fresh, other = copy.deepcopy(loss), setting(kind, 3, ROWS)[0]
    other.load_state_dict(fusion.state_dict())
    torch.manual_seed(0)
    for again in (loss, fresh):
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                out = again(latents, None, fusion=other)
            assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", WAYS)
def test_train_mode_draws_as_ever(kind):
    fusion, latents = setting(kind, 3, ROWS)
    loss = evaluated().train()
    torch.manual_seed(0)
    values = [loss(latents, None, fusion=fusion).mipd for _ in range(3)]
    assert len({x.item() for x in values}) == 3
    torch.manual_seed(0)
    donors = sample_permutations(3, ROWS, num_modalities=3)
    assert loss(latents, None, fusion=fusion, permutations=donors).mipd == values[0]


def test_what_is_given_is_taken():
    fusion, latents = setting("linear", 3, ROWS)
    loss = evaluated()
    for options in DRAWS[:3]:
        loss = evaluated(**options)
        values = []
        for each in (loss, copy.deepcopy(loss).train()):
            g = generator(3)
            values.append(each(latents, None, fusion=fusion, generator=g).mipd)
            values.append(g.get_state())
        assert values[0] == values[2]
        assert torch.equal(values[1], values[3])
        assert not torch.equal(values[1], generator(3).get_state())
    donors = sample_permutations(3, ROWS, num_modalities=3, generator=generator(4))
    given = evaluated()(latents, None, fusion=fusion, permutations=donors).mipd
    assert given == evaluated().train()(latents, None, fusion=fusion, permutations=donors).mipd


def test_the_watch_sees_training_only():
    fusion, latents = setting()
    loss = mcr().eval()
    for _ in range(EVERY):
        loss(latents, LABELS, fusion=fusion)
    assert loss._watch._forwards == 0
    loss.train()(latents, LABELS, fusion=fusion)
    assert loss._watch._forwards == 1


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_made_that_nobody_wants(kind, mode):
    fusion, latents = setting(kind)
    loss, asked = mcr(num_permutations=3).eval(), []
    call, row_divergence_parts = regularizer_op.call, engine.row_divergence_parts

    def spy(target, *args, graph):
        asked.append(graph or args[-1])
        return call(target, *args, graph=graph)

    def parts(*args, want_grad, **options):
        asked.append(want_grad)
        return row_divergence_parts(*args, want_grad=want_grad, **options)

    with (
        mode(),
        mock.patch("mcr_fast.ops.regularizer.call", spy),
        mock.patch("mcr_fast.mipd.engine.row_divergence_parts", parts),
        mock.patch("torch.autograd.grad", side_effect=AssertionError),
    ):
        loss(latents, LABELS, fusion=fusion)
        loss(latents, LABELS, fusion=fusion)  # which is known by now
    assert asked
    assert not any(asked)


def test_a_loss_can_be_trained_on_in_eval_mode():
    """Modules are switched as a whole, and the loss with them."""
    fusion, latents = setting()
    loss = mcr(num_permutations=3).eval()
    out = loss(latents, LABELS, fusion=fusion)
    (out.loss + cross_entropy(out.logits, LABELS)).backward()
    assert all(z.grad.any() for z in latents)


def test_compiled_and_over_samples():
    fusion, latents = setting(num_rows=ROWS, dtype=torch.float32)
    loss = mcr(num_permutations=3).eval()
    expected = loss(latents, None, fusion=fusion)
    run = torch.compile(loss, fullgraph=True, backend="aot_eager")
    state = torch.get_rng_state()
    torch.testing.assert_close(run(latents, None, fusion=fusion), expected)
    many = [torch.stack([z, 2 * z]) for z in latents]
    divergences = torch.func.vmap(lambda *z: loss(list(z), None, fusion=fusion).divergences)(*many)
    torch.testing.assert_close(divergences[0], expected.divergences)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_fixed_numbers_are_as_good_as_random_ones():
    """Permutations of all kinds, no row near its donor more often than chance has it."""
    cpu = torch.device("cpu")
    orders = torch.stack([Fixed(cpu, draw).permutation(64) for draw in range(500)])
    assert torch.equal(orders.sort(1).values, torch.arange(64).expand(500, 64))
    assert len(orders.unique(dim=0)) == 500
    places = orders.double()
    # of 64 means of 500 uniform numbers, and of neighbours' correlation: 5 standard errors
    assert ((places.mean(0) - 31.5).abs() < 5 * 64 / 12**0.5 / 500**0.5).all()
    pairs = torch.stack([places[:, :-1].flatten(), places[:, 1:].flatten()])
    assert torch.corrcoef(pairs)[0, 1] + 1 / 63 < 5 / 500**0.5 / 63**0.5
    x = Fixed(cpu).normal(100, 100)
    assert x.mean().abs() < 0.05
    assert (x.std() - 1).abs() < 0.05
    assert torch.equal(x, Fixed(cpu).normal(100, 100))


def test_rows_of_donors_are_distinct_and_no_rows_own():
    order, donors = evaluated()._donors(make_latents(1, 3, 40), None)
    assert torch.equal(order.sort().values, torch.arange(40))
    assert donors.shape == (3, 3)
    assert ((donors >= 1) & (donors < 40)).all()
    assert all(len(row.unique()) == 3 for row in (*donors, *donors.T))
    assert mcr(num_permutations=100).eval()._donors(make_latents(1, 2, N, D), None)[0] is None
