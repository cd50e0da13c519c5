"""A loss that has seen a batch of a form answers the next step as one that has seen none."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from contrastive import needs_library
from divergences import assert_same_bits
from torch import nn

import mcr_fast

np = pytest.importorskip("numpy")
pytestmark = needs_library
N, D, C = 6, 4, 3


class Step:
    """What a step is called with, and the loss; `change` it after a first one."""

    def __init__(self):
        torch.manual_seed(0)
        self.latents = [torch.randn(N, D, requires_grad=True) for _ in range(2)]
        self.labels = torch.arange(N) % C
        self.fusion = nn.Linear(2 * D, C)
        self.options = {"num_permutations": 2}
        self.given = {}
        self.set = {}  # attributes of the loss

    def outcome(self, mcr):
        """Outputs and gradients, or the error."""
        torch.manual_seed(1)
        try:
            for name, value in self.set.items():
                setattr(mcr, name, value)
            out = mcr(self.latents, self.labels, fusion=self.fusion, **self.given)
        except Exception as error:
            return [], f"{type(error).__name__}: {error}"
        leaves = [x for x in (*self.latents, *self.fusion.parameters()) if x.requires_grad]
        grads = torch.autograd.grad(out.loss, leaves, materialize_grads=True)
        return [*out, *grads], ""

    def loss(self):
        return mcr_fast.MCRLoss([D, D], C, **self.options)


def latents_of(step, *shape, **how):
    step.latents = [torch.randn(*shape, **how) for _ in range(2)]


def doubles(step):
    latents_of(step, N, D, dtype=torch.float64)
    step.fusion.double()


def as_halves(step):
    latents_of(step, N, D, dtype=torch.bfloat16, requires_grad=True)
    step.fusion.bfloat16()


def double_bias(step):
    step.fusion.bias = nn.Parameter(step.fusion.bias.detach().double())


def float_labels(step):
    step.labels = torch.tensor([0.0, -0.0, 1.0, float("nan"), float("nan"), 1.0])


def hooked(step):
    step.fusion.register_forward_hook(lambda *_: _[2].tanh())


def spectral(step):
    nn.utils.parametrizations.spectral_norm(step.fusion)


def wider(step):
    step.fusion = nn.Linear(2 * D + 1, C)


def others(step):
    step.fusion = mcr_fast.AdditiveFusion.from_linear(step.fusion, [D - 1, D + 1])


CHANGES = {
    "nothing": lambda step: None,
    "fewer rows": lambda step: (latents_of(step, 2, D), setattr(step, "labels", torch.arange(2))),
    "no rows": lambda step: (latents_of(step, 0, D), setattr(step, "labels", torch.arange(0))),
    "labels that do not fit": lambda step: setattr(step, "labels", torch.arange(N + 1)),
    "labels of columns": lambda step: setattr(step, "labels", torch.zeros(N, 1, dtype=torch.int64)),
    "labels of small integers": lambda step: setattr(step, "labels", step.labels.to(torch.uint8)),
    "float labels": float_labels,
    "no labels": lambda step: setattr(step, "labels", None),
    "labels in a list": lambda step: setattr(step, "labels", [0] * N),
    "a latent in a list": lambda step: step.latents.__setitem__(0, [0.0]),
    "three latents": lambda step: step.latents.append(step.latents[0]),
    "one latent": lambda step: step.latents.pop(),
    "a tuple of latents": lambda step: setattr(step, "latents", tuple(step.latents)),
    "wider latents": lambda step: latents_of(step, N, D + 1),
    "latents with positions": lambda step: latents_of(step, N, 3, D),
    "sparse latents": lambda step: step.latents.__setitem__(1, torch.eye(N, D).to_sparse()),
    "nested latents": lambda step: step.latents.__setitem__(
        1, torch.nested.nested_tensor([torch.zeros(2, D), torch.zeros(4, D)])
    ),
    "nested labels": lambda step: setattr(
        step, "labels", torch.nested.nested_tensor([torch.arange(2), torch.arange(4)])
    ),
    "latents elsewhere": lambda step: latents_of(step, N, D, device="meta"),
    "doubles alone": lambda step: latents_of(step, N, D, dtype=torch.float64),
    "doubles": doubles,
    "halves": as_halves,
    "a bias of doubles": double_bias,
    "a temperature of another library": lambda step: step.set.update(temperature=np.array(0.25)),
    "without gradients": lambda step: latents_of(step, N, D),
    "a hook": hooked,
    "a computed weight": spectral,
    "no bias": lambda step: setattr(step, "fusion", nn.Linear(2 * D, C, bias=False)),
    "a wider fusion": wider,
    "other widths": others,
    "more classes": lambda step: setattr(step, "fusion", nn.Linear(2 * D, C + 1)),
    "presence": lambda step: step.given.update(present=torch.rand(N, 2) < 0.7),
    "weights": lambda step: step.given.update(sample_weight=torch.rand(N)),
    "a strategy": lambda step: step.set.update(strategy="independent", clean_path="routed"),
    "a divergence": lambda step: step.set.update(divergence="mse"),
    "excluded pairs": lambda step: step.set.update(exclude="same_label"),
    "an unknown strategy": lambda step: step.set.update(strategy=["greedy"]),
    "another temperature": lambda step: step.set.update(temperature=2.0),
    "no temperature": lambda step: step.set.update(temperature=-1.0),
    "no MIPD": lambda step: step.set.update(mipd_weight=0.0),
    "a weight in a tensor": lambda step: step.set.update(mipd_weight=torch.tensor(0.5)),
    "the other loss": lambda step: step.set.update(contrastive="sup_con"),
    "more permutations": lambda step: step.set.update(num_permutations="all"),
    "another scheme": lambda step: step.set.update(scheme="uniform"),
    "another backend": lambda step: step.set.update(backend="reference"),
    "no backend": lambda step: step.set.update(backend="cuda"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_seen(change):
    step, fresh = Step(), Step()
    seen, unseen = step.loss(), fresh.loss()
    step.outcome(seen)
    for of in (step, fresh):
        torch.manual_seed(2)
        CHANGES[change](of)
    for _ in range(2):  # the second time it may be known as it is
        results, error = step.outcome(seen)
        expected, expected_error = fresh.outcome(unseen)
        unseen = fresh.loss()
        assert error == expected_error
        assert_same_bits(results, expected)


def test_a_known_step_is_not_checked_again():
    step = Step()
    seen = step.loss()
    expected, _ = step.outcome(seen)
    with mock.patch.object(mcr_fast.MCRLoss, "_step", side_effect=AssertionError):
        assert_same_bits(step.outcome(seen)[0], expected)
        assert_same_bits(step.outcome(seen)[0], expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert step.outcome(seen)[1] == "AssertionError: "
        for copied in (copy.deepcopy(seen), pickle.loads(pickle.dumps(seen))):
            assert step.outcome(copied)[1] == "AssertionError: "


def test_transforms_are_seen():
    step = Step()
    seen = step.loss()
    step.outcome(seen)

    def value(z):
        return seen([z, step.latents[1]], step.labels, fusion=step.fusion).loss

    with torch.no_grad():
        torch.manual_seed(1)
        transformed = torch.func.grad(value)(step.latents[0])
    torch.testing.assert_close(
        transformed, step.outcome(seen)[0][len(mcr_fast.modules.MCROutput._fields)]
    )


def test_few_forms_are_kept():
    step = Step()
    seen = step.loss()
    for rows in range(2, 200):
        latents_of(step, rows, D)
        step.labels = torch.arange(rows) % C
        step.outcome(seen)
    assert len(seen._known._backends) <= 64
