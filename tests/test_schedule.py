"""The warm-up and the window of MCRObjective: what counts, what is computed, what is saved."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.distributed.checkpoint import state_dict as state
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mcr_fast import MCRLoss, MCRObjective

N, C, D = 8, 3, 4
LABELS = torch.arange(N) % C


class Model(nn.Module):
    """Encoders, fusion, heads and objective in one."""

    def __init__(self, embedded=False, **options):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.fusion = nn.Linear(2 * D, C)
        self.heads = nn.ModuleList(nn.Linear(D, C) for _ in range(2))
        loss = MCRLoss([D, D], C, num_permutations=3, ceb_weight=0.5)
        self.objective = MCRObjective(loss, **options)
        self.projection = nn.Linear(D, D) if embedded else None

    def forward(self, *xs):
        latents = [encode(x) for encode, x in zip(self.encoders, xs, strict=True)]
        given = {"fusion": self.fusion, "unimodal_heads": self.heads}
        if self.projection is not None:
            given["embeddings"] = [self.projection(z) for z in latents]
        return self.objective(latents, LABELS, **given)


def batch(seed=1):
    torch.manual_seed(seed)
    return [torch.randn(N, D) for _ in range(2)]


def factor(out):
    """What the regularizer was multiplied by."""
    loss = 0.1 * out.mipd + out.contrastive + 0.5 * out.ceb
    return ((out.loss - out.task - out.unimodal.sum()) / loss).item() if loss != 0 else 0.0


CASES = [
    ({}, [1] * 6),
    ({"warmup": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
    ({"warmup": 1}, [1] * 6),
    ({"window": (2, 4)}, [0, 0, 1, 1, 0, 0]),
    ({"window": (None, 3)}, [1, 1, 1, 0, 0, 0]),
    ({"window": (1, None), "warmup": 2}, [0, 0.5, 1, 1, 1, 1]),
    ({"window": (1, 2), "unit": "epoch", "warmup": 3}, [0, 0, 1 / 3, 2 / 3, 0, 0]),
]


@pytest.mark.parametrize(("options", "expected"), CASES)
def test_factor_of_each_training_forward(options, expected):
    model, found = Model(**options), []
    for step in range(6):
        model.objective.set_epoch(step // 2)
        announced = model.objective.regularizer_weight
        out = model(*batch())
        found.append(factor(out))
        assert found[-1] == pytest.approx(announced, abs=1e-5)
        out.loss.backward()
    assert found == pytest.approx(expected, abs=1e-5)


def test_outside_of_the_window_nothing_is_computed(monkeypatch):
    model = Model(window=(1, None))
    monkeypatch.setattr(type(model.objective.loss), "_donors", None)
    monkeypatch.setattr("mcr_fast.functional.contrastive", None)
    xs, before = batch(), torch.get_rng_state()
    out = model(*xs)
    assert torch.equal(torch.get_rng_state(), before)
    assert out.mipd == out.contrastive == out.ceb == 0
    assert out.divergences.tolist() == [0, 0]
    assert out.importance.tolist() == [0.5, 0.5]
    assert out.logits.shape == (N, C)
    out.loss.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.any() != ("ceb_head" in name), name


def test_only_training_forwards_count():
    model = Model(warmup=10)
    model(*batch())
    model.eval()
    assert factor(model(*batch())) == pytest.approx(0.2, abs=1e-5)
    model.train()
    with torch.no_grad():
        model(*batch())
    with torch.inference_mode():
        model(*batch())
    assert model.objective.schedule.steps == 1


@pytest.mark.parametrize("compiled", [False, True])
def test_outside_of_the_window_options_set_later_count(compiled):
    model = Model(window=(4, None))
    torch._dynamo.reset()
    run = torch.compile(model, backend="aot_eager") if compiled else model
    loss = model.objective.loss
    run(*batch())
    loss.divergence, loss.subsets = "mse", "single"
    assert run(*batch()).divergences.shape == (2,)
    three = MCRObjective(MCRLoss([D] * 3, C), window=(4, None), unimodal_weight=0)
    three.loss.subsets = "single"
    latents = [torch.randn(N, D) for _ in range(3)]
    assert three(latents, LABELS, fusion=nn.Linear(3 * D, C)).divergences.shape == (3,)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_step_counts_once(reentrant):
    gradients = []

    def loss_of(*xs):
        return model(*xs).loss

    for checkpointed in (False, True):
        model = Model(warmup=4)
        for _ in range(3):
            model.zero_grad()
            xs = [x.requires_grad_() for x in batch()]
            torch.manual_seed(2)
            if checkpointed:
                loss = checkpoint(loss_of, *xs, use_reentrant=reentrant)
            else:
                loss = loss_of(*xs)
            loss.backward()
        assert model.objective.schedule.steps == 3
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("options", [{"warmup": 4}, {"window": (0, 1)}])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_checkpointed_forward_keeps_its_own_factor(compiled, calls, options):
    """Also where others ran before its backward."""

    def loss_of(*xs):
        return sum(model(*xs).loss for _ in range(calls))

    def checkpointed(*xs):
        torch._dynamo.reset()
        run = torch.compile(loss_of, backend="aot_eager") if compiled else loss_of
        return checkpoint(run, *xs, use_reentrant=False)

    found = []
    for run in (loss_of, checkpointed):
        model = Model(**options)
        torch.manual_seed(2)
        total = run(*batch()) + run(*batch(2))
        found.append([total, *torch.autograd.grad(total, list(model.parameters()))])
        assert model.objective.schedule.steps == 2 * calls
    torch.testing.assert_close(*found)


def test_a_checkpoint_of_training_goes_on(tmp_path):
    model = Model(warmup=10, window=(1, 30))
    model.objective.set_epoch(3)
    for _ in range(5):
        model(*batch())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = Model(warmup=10, window=(1, 30))
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    at = other.objective.schedule
    assert (at.steps, at.steps_in_window, at.epoch) == (5, 4, 3)
    assert other.objective.regularizer_weight == model.objective.regularizer_weight == 0.5
    counters = model.state_dict()["objective._extra_state"]
    assert isinstance(counters, torch.Tensor)
    assert not any("_outside" in name for name in model.state_dict())


def test_formats_of_checkpoints_hold_the_counters(tmp_path):
    """That of distributed training, and the one that holds tensors alone."""
    model, other = Model(warmup=10), Model(warmup=10)
    model.objective.schedule.set(5, 4, 3)
    state.set_model_state_dict(other, state.get_model_state_dict(model))
    assert other.objective.schedule.steps == 5
    safetensors = pytest.importorskip("safetensors.torch")
    model.objective.schedule.set(6, 4, 3)
    safetensors.save_model(model, tmp_path / "model.safetensors")
    safetensors.load_model(other, tmp_path / "model.safetensors")
    assert other.objective.schedule.steps == 6


def test_no_device_is_asked():
    """On the meta device no value can be read."""
    model = Model(warmup=4, window=(1, 3)).to("meta")
    labels = LABELS.to("meta")
    latents = [torch.randn(N, D, device="meta", requires_grad=True) for _ in range(2)]
    for _ in range(4):
        out = model.objective(latents, labels, fusion=model.fusion, unimodal_heads=model.heads)
        out.loss.backward()


@pytest.fixture
def group():
    """Of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "changed",
    ["window", "ceb_weight", "unimodal_weight", "embeddings", "contrastive_weight"],
)
def test_data_parallel_training_goes_on(changed, group):
    """A parameter without a gradient would stop the next step."""
    options = {"window": (1, 2)} if changed in ("window", "embeddings") else {}
    embedded = changed in ("embeddings", "contrastive_weight")
    inner = Model(embedded=embedded, **options)
    model, objective = DistributedDataParallel(inner), inner.objective
    for step in range(4):
        model(*batch()).loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        model.zero_grad()
        if changed == "unimodal_weight":
            objective.unimodal_weight = step % 2
        elif changed.endswith("weight"):
            setattr(objective.loss, changed, step % 2)


@pytest.mark.parametrize("whole", [True, False])
def test_sharded_training_goes_on_across_the_window(group, whole):
    """Of the model, or of L_CEB's head alone, which is not gathered outside of the window."""
    model, plain = Model(window=(1, 2)), Model(window=(1, 2))
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model if whole else model.objective.loss.ceb_head, mesh=mesh)
    losses = []
    for each in (model, plain):
        optimizer = torch.optim.SGD(each.parameters(), lr=0.1)
        for _ in range(4):
            out = each(*batch())
            assert type(out.loss) is torch.Tensor
            out.loss.backward()
            assert all(p.grad is not None for p in each.parameters())
            optimizer.step()
            optimizer.zero_grad()
        losses.append(out.loss)
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 1),
        ({"warmup": 5}, 1),
        ({"window": (2, 5)}, 2),
        ({"window": (1, 2), "unit": "epoch"}, 2),
    ],
)
def test_compiled_it_is_what_it_is_eagerly(options, most):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    def step(model):
        return lambda *latents: model.objective(
            list(latents), LABELS, fusion=model.fusion, unimodal_heads=model.heads
        )

    eager, model = Model(**options), Model(**options)
    torch._dynamo.reset()
    compiled = torch.compile(step(model), backend=count)
    for index in range(7):
        results = []
        for run, of in ((compiled, model), (step(eager), eager)):
            of.objective.set_epoch(index // 2)
            latents = [z.requires_grad_() for z in batch(index)]
            out = run(*latents)
            leaves = [*latents, *of.objective.parameters()]
            results.append([*out, *torch.autograd.grad(out.loss, leaves)])
        torch.testing.assert_close(*results)
    assert len(graphs) <= most


def test_a_schedule_without_steps_breaks_no_graph():
    model = Model(window=(0, 3), unit="epoch")
    latents = [z.requires_grad_() for z in batch()]
    torch._dynamo.reset()
    run = torch.compile(model.objective, fullgraph=True, backend="aot_eager")
    run(latents, LABELS, fusion=model.fusion, unimodal_heads=model.heads).loss.backward()
