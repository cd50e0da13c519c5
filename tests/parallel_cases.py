"""Models that are trained in several processes, and what is tried with them in each."""

import contextlib
import copy
import functools
import warnings

import torch
from inputs import generator, make_fusion, make_latents
from torch import nn
from torch.distributed._composable.replicate import replicate
from torch.distributed.algorithms.join import Join
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.nn.utils import parametrizations

import mcr_fast
from mcr_fast import MCRLoss

ROWS, C, D, WORLD = 5, 3, 4, 2
KINDS = ("linear", "weight_norm", "sequential", "additive", "additive_head", "gated", "function")


class Model(nn.Module):
    """Encoders, a fusion, the loss, and a layer after it."""

    def __init__(self, kind, *, inside=True, given=False):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleList(nn.Linear(D, D) for _ in range(2)).double()
        self.kind, self.inside, self.given = kind, inside, given
        self.fusion = make_fusion(
            {"weight_norm": "linear", "function": "additive_head"}.get(kind, kind), 1, 2
        ).fusion
        if kind == "weight_norm":
            parametrizations.weight_norm(self.fusion)
        self.after = nn.Linear(C, C).double()
        self.mcr = MCRLoss([D, D], C, mipd_weight=1.0, strategy="independent")

    def loss(self, latents, logits=None):
        table = mcr_fast.sample_permutations(3, len(latents[0]), generator=generator(2))
        fusion = self.fusion if self.kind != "function" else lambda z: self.fusion(z)
        out = self.mcr(latents, None, fusion=fusion, permutations=table, logits=logits)
        return out.loss + out.logits.square().mean()

    def forward(self, xs):
        latents = [encode(x) for encode, x in zip(self.encoders, xs, strict=True)]
        logits = None
        if self.given:
            joined = self.kind in ("linear", "weight_norm")
            logits = self.fusion(torch.cat(latents, 1) if joined else latents)
        if not self.inside:
            return latents, logits
        loss = self.loss(latents, logits)
        return loss + self.after(loss.reshape(1, 1).expand(1, C)).square().mean()


def step(called, model, rank):
    """The loss of a model, or outside of it of what the called wrapper gave."""
    dtype = next(model.parameters()).dtype
    out = called([x.detach().to(dtype) for x in make_latents(10 + rank, 2, ROWS)])
    return out if model.inside else model.loss(*out)


def gradients(model):
    """By name: the gradient, and whether fully_shard averages it."""
    found = {}
    for name, p in model.named_parameters():
        sharded = hasattr(p, "full_tensor")
        grad = p.grad.full_tensor() if sharded and p.grad is not None else p.grad
        for wrapper in ("module.", "_orig_mod.", "_fsdp_wrapped_module."):
            name = name.replace(wrapper, "")
        found[name] = None if grad is None else (grad.clone(), sharded)
    return found


def trained(called, model, rank, steps=2):
    for _ in range(steps):  # a later step finds the first one reduced
        for p in model.parameters():
            p.grad = None
        step(called, model, rank).backward()
    return gradients(model)


def alone(kind, rank, **how):
    """The gradients of a process on its own."""
    model = Model(kind, **how)
    step(model, model, rank).backward()
    return {name: p.grad for name, p in model.named_parameters()}


# Data-parallel


def ddp_model(rank, kind, given=False, inside=True, **options):
    model = Model(kind, inside=inside, given=given)
    if not inside:
        model.after = nn.Identity()
    return trained(DDP(model, **options), model, rank)


def ddp_compiled(rank, kind, around):
    model = Model(kind)
    compiled = functools.partial(torch.compile, backend="eager")
    called = compiled(DDP(model)) if around else DDP(compiled(model))
    return trained(called, model, rank)


def replicated(rank, kind):
    model = Model(kind)
    replicate(model.fusion)
    return trained(model, model, rank)


def ddp_fusion(rank, kind, compiled=False, **options):
    model = Model(kind)
    model.fusion = DDP(model.fusion, **options)
    if compiled:
        model.fusion = torch.compile(model.fusion, backend="eager")
    return trained(model, model, rank)


def ddp_no_sync(rank, kind):
    model = Model(kind)
    ddp = DDP(model)
    with ddp.no_sync():
        (step(ddp, model, rank) / 2).backward()
    (step(ddp, model, rank) / 2).backward()
    return gradients(model)


def ddp_join(rank, kind):
    """Rank 1 has a batch more: what it alone brings is divided by all ranks."""
    model = Model(kind)
    ddp, found = DDP(model), []
    with Join([ddp]):
        for _ in range(1 + rank):
            found.append(trained(ddp, model, rank, 1))
    return found


def double_use(rank, kind):
    """The fusion is used outside of the forward that DDP looked through for unused parameters."""
    try:
        ddp_model(rank, kind, inside=False, find_unused_parameters=True)
    except RuntimeError as error:
        return str(error)
    return None


# Sharded

PLANS = {
    "each part": lambda m: [*m.encoders, m.fusion, m.after, m],
    "the model": lambda m: [m],
    "the fusion": lambda m: [m.fusion],
    "a group": lambda m: [[m.fusion, m.after], m],
    "layers of the fusion": lambda m: [*layers(m.fusion), m],
    "layers of the fusion alone": lambda m: [*layers(m.fusion)],
}


def layers(module):
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def fsdp(rank, kind, plan, inside=True, given=False):
    model = Model(kind, inside=inside, given=given)
    for part in PLANS[plan](model):
        fully_shard(part)
    return trained(model, model, rank)


def fsdp_accumulated(rank, kind):
    model = Model(kind)
    for part in PLANS["each part"](model):
        fully_shard(part)
    for last in (False, True):
        model.set_requires_gradient_sync(last)
        (step(model, model, rank) / 2).backward()
    return gradients(model)


def fsdp_mixed(rank, kind, output_dtype):
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=output_dtype
    )
    model = Model(kind).float()
    for part in PLANS["each part"](model):
        fully_shard(part, mp_policy=policy)
    return trained(model, model, rank, 1)


def fsdp_compiled(rank, kind):
    model = Model(kind)
    model.fusion = torch.compile(fully_shard(model.fusion), backend="eager")
    return trained(model, model, rank)


def fsdp1(rank, kind):
    """FSDP1 around the model: the loss runs where its parameters are whole."""
    model = Model(kind)
    cpu = torch.device("cpu")
    wrapper = FullyShardedDataParallel(model, use_orig_params=True, device_id=cpu)
    step(wrapper, model, rank).backward()
    with FullyShardedDataParallel.summon_full_params(wrapper, with_grads=True):
        return gradients(model)


def fsdp1_flat(rank, kind):
    """FSDP1 with one flat parameter, of which a module's are views for the time of a call."""
    model = Model(kind)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    with warnings.catch_warnings():  # torch has better for this strategy
        warnings.simplefilter("ignore", FutureWarning)
        wrapper = FullyShardedDataParallel(
            model,
            use_orig_params=False,
            device_id=torch.device("cpu"),
            sharding_strategy=ShardingStrategy.NO_SHARD,
        )
    step(wrapper, model, rank).backward()
    (flat,) = wrapper.parameters()
    pieces = flat.grad.split([shape.numel() for shape in shapes.values()])
    pairs = zip(shapes.items(), pieces, strict=True)
    return {name: (piece.view(shape).clone(), False) for (name, shape), piece in pairs}


def tensor_parallel_encoders(rank, kind):
    """Both ranks see the same rows, and draw the same donors."""
    model = Model(kind)
    model.encoders = nn.ModuleList(
        nn.Sequential(encode, nn.Linear(D, D).double()) for encode in model.encoders
    )
    whole = copy.deepcopy(model)
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    for encode in model.encoders:
        parallelize_module(encode, init_device_mesh("cpu", (WORLD,)), plan)
    return trained(model, model, 0), trained(whole, whole, 0)


def refusal(rank, kind, how):
    """What a fusion that is spread in another way is answered."""
    model, cpu = Model(kind, inside=False), torch.device("cpu")
    if how == "tensor parallel":
        plan = ColwiseParallel(output_layouts=Replicate())
        mesh = init_device_mesh("cpu", (WORLD,))
        whole = isinstance(model.fusion, nn.Linear)
        names = {n: plan for n, m in model.fusion.named_modules() if isinstance(m, nn.Linear)}
        parallelize_module(model.fusion, mesh, plan if whole else names)
    elif how == "fsdp1":
        model.fusion = FullyShardedDataParallel(model.fusion, use_orig_params=True, device_id=cpu)
    else:  # the fusion's parameters belong to a unit whose forward has not been called
        fully_shard(model)
    try:
        model.loss([x.detach().requires_grad_() for x in make_latents(10 + rank, 2, ROWS)])
    except TypeError as error:
        return str(error)
    return None


# The head of L_CEB


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoders = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.fusion = nn.Linear(2 * D, C)
        self.mcr = MCRLoss([D, D], C, ceb_weight=1.0)

    def forward(self, xs, mcr=None):
        latents = [encode(x) for encode, x in zip(self.encoders, xs, strict=True)]
        if mcr == "later":
            return latents
        mcr = mcr or self.mcr
        return mcr(latents, None, fusion=self.fusion).loss


HEADS = ("alone", "wrapped itself", "in the model", "held, called outside", "fully_shard")


def ceb_head(rank, how):
    """The drift of two heads, and what was said about it."""
    model, mcr = WithHead(), None
    if how == "alone":
        mcr, model.mcr = model.mcr, nn.Identity()
        called = DDP(model)
        call = functools.partial(_with_loss, called, mcr)
    elif how == "wrapped itself":
        mcr, model.mcr = model.mcr, nn.Identity()
        mcr.ceb_head = DDP(mcr.ceb_head)
        call = functools.partial(_with_loss, DDP(model), mcr)
    elif how == "held, called outside":
        held, inner = DDP(model), model
        call = lambda xs: inner.mcr(held(xs, "later"), None, fusion=inner.fusion).loss  # noqa: E731
    elif how == "fully_shard":
        call = fully_shard(model)
    else:
        call = DDP(model)
    head = (mcr or model.mcr).ceb_head
    xs = [x.detach() for x in make_latents(10 + rank, 2, ROWS, dtype=torch.float32)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            call(xs).backward()
            with torch.no_grad(), contextlib.suppress(TypeError):
                for p in head.parameters():
                    p -= 0.1 * p.grad
    values = [getattr(p, "full_tensor", p.detach)() for p in head.parameters()]
    said = [str(w.message) for w in caught if "head of L_CEB" in str(w.message)]
    return [v.detach().clone() for v in values], said


def _with_loss(called, mcr, xs):
    return called(xs, mcr)
