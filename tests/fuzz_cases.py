"""The engine fuzz's cases: sizes, options, data, and a small model, all from one seed.

`draw(seed)` says what is asked for. `World(case)` is the model: leaves, encoders, a fusion, the
loss. The same case gives the same world whenever it is built, so that the engine and the oracle
have one each.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import fuzz_fusions
import torch
from fuzz_fusions import WIDTH, Conditioned, Drawn, Sizes
from inputs import generator
from torch import Tensor, nn

import mcr_fast
from mcr_fast._names import DIVERGENCES, OF_SOFTMAX


@dataclass
class Case:
    """One seed's choices."""

    seed: int
    dtype: torch.dtype
    sizes: Sizes
    options: dict  # of MCRLoss
    labels: Tensor | None
    data: dict  # present, sample_weight: of forward
    permutations: Tensor | mcr_fast.sampling.CyclicPermutations | None
    own_generator: bool
    objective: dict
    scale: float = 1.0  # of latents


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng, g = random.Random(seed), generator(seed)
    num_modalities = rng.choice([2, 2, 2, 3, 3, 4])
    num_rows = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 9])
    classes = rng.randint(2, 6)
    divergence, scale = rng.choice(("jsd", *DIVERGENCES)), 1.0
    linear = seed % 10 == 0  # a layer over all latents, which kernels take, of all sizes
    if linear:
        num_rows, classes = rng.choice([0, 1, 3, 8, 13]), rng.choice([1, 2, 7, 17])
        scale = rng.choice([0.1, 1.0, 30.0])
    if divergence in OF_SOFTMAX:  # of one logit it is refused
        classes = max(classes, 2 if linear else 3)
    same_width, same_rank = rng.random() < 0.7, rng.random() < 0.8 or linear
    dim, rank = rng.randint(1, 5), 2 if linear else rng.choice([2, 2, 2, 3, 4])
    sizes = Sizes(
        [dim if same_width else rng.randint(1, 5) for _ in range(num_modalities)],
        [rank if same_rank else rng.choice([2, 3, 4]) for _ in range(num_modalities)],
        classes,
        num_rows,
        rng.random() < 0.5,
        rng.choice(["permute"] * 8 + ["zero", "noise"]),
        linear,
    )
    labels = torch.randint(0, min(3, classes), (num_rows,), generator=g)
    options = _options(rng, sizes, divergence)
    if options["ceb_source"] != "labels" and rng.random() < 0.2:
        labels = labels.float()
    if options["exclude"] != "same_label" and options["ceb_source"] != "labels":
        labels = None if rng.random() < 0.3 else labels
    data = {
        "present": torch.rand(num_rows, num_modalities, generator=g) > 0.25,
        "sample_weight": (torch.rand(num_rows, generator=g) * 2).round(),
    }
    data = {name: x if rng.random() < 0.3 else None for name, x in data.items()}
    permutations = _permutations(rng, sizes, options, g)
    objective = {
        "upstream": rng.choice([1.0, 1.0, -2.5, 0.3]),
        "task": rng.random() < 0.6,
        "consumer": rng.random() < 0.3,  # another loss on the first latent
        "give_logits": rng.random() < 0.15,
        "no_grad": rng.random() < 0.06,
        "retain_grad": rng.random() < 0.15,  # of latents that are no leaves
        "backward_twice": rng.random() < 0.1,
        "penalty": rng.random() < 0.1,  # on a gradient of the task's loss
    }
    dtype = torch.float32 if rng.random() < 0.25 else torch.float64
    own_generator = rng.random() < 0.7
    return Case(
        seed, dtype, sizes, options, labels, data, permutations, own_generator, objective, scale
    )


def _options(rng: random.Random, sizes: Sizes, divergence: str) -> dict:
    equal = len(set(sizes.dims)) == 1
    num_permutations = rng.choice([1, 2, 3, 5, 32, "all"])
    scheme = rng.choice(["cyclic", "cyclic", "uniform"])
    if sizes.perturbation == "noise" or scheme == "uniform":
        num_permutations = rng.choice([1, 2, 4])
    return {
        "strategy": rng.choice(["greedy", "independent", "collaborative"]),
        "clean_path": rng.choice(["shared", "routed", "detached"]),
        "subsets": rng.choice(["single", "all"]),
        "divergence": divergence,
        "exclude": rng.choice([None, None, "self", "same_label"]),
        "scheme": scheme,
        "num_permutations": num_permutations,
        "shared_donor": rng.random() < 0.5,
        "perturbation": sizes.perturbation,
        "chunk_rows": _chunk_rows(rng, sizes),
        "mipd_weight": rng.choice([1.0, 1.0, 1.0, 0.1, 0.0 if rng.random() < 0.2 else 3.0]),
        "contrastive_weight": 0.5 if rng.random() < (0.25 if equal else 0.1) else 0.0,
        "contrastive": rng.choice(["nt_xent", "sup_con"]),
        "ceb_weight": 0.7 if rng.random() < 0.2 else 0.0,
        "ceb_source": "logits" if rng.random() < 0.7 else "labels",
        "backend": "reference" if rng.random() < 0.1 else None,
    }


def _chunk_rows(rng: random.Random, sizes: Sizes) -> int | None:
    """Small chunks cost a run of the fusion each, so they are kept for small cases."""
    n = max(sizes.num_rows, 1)
    fine = [1, 2] if n * len(sizes.dims) <= 8 else []
    return rng.choice([None, None, max(n - 1, 1), n, 2 * n + 1, 1000, *fine])


def _permutations(rng, sizes: Sizes, options: dict, g: torch.Generator):
    """A donor table of the caller's own, None to have one drawn."""
    n, m = sizes.num_rows, len(sizes.dims)
    if sizes.perturbation != "permute" or rng.random() < 0.6:
        return None
    own = rng.choice([None, m])
    scheme = "cyclic" if n > (m if own else 1) and rng.random() < 0.4 else "uniform"
    count = rng.randint(1, 3) if scheme == "uniform" else rng.randint(1, min(3, n - 1))
    sample = mcr_fast.sample_permutations(count, n, scheme=scheme, num_modalities=own, generator=g)
    if scheme == "cyclic":
        return sample if rng.random() < 0.6 else sample.index()
    return sample.mT.contiguous().mT if rng.random() < 0.3 else sample


LATENTS = ("leaf", "leaf", "encoded", "encoded", "view", "strided leaf", "expanded")


class World(nn.Module):
    """A model and its data, float32 as built; `.to(dtype)` before `encode`."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.words = case, []
        rng = random.Random(case.seed + 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(case.seed)
            self._build(rng)
            for x in self.parameters():
                x.data.add_(0.1 * torch.randn(x.shape))
            for name, x in self.named_buffers():
                if "running" in name:
                    x.copy_(torch.rand(x.shape) + 0.5)
        self.latents: list[Tensor] = []

    def _build(self, rng: random.Random) -> None:
        case, sizes = self.case, self.case.sizes
        self.raw, self.encoders, self.forms = nn.ParameterList(), nn.ModuleList(), []
        for m in range(len(sizes.dims)):
            self._add_latent(rng, m)
        tied = self.encoders[0][0] if self.forms[0] == "encoded" else None
        drawn = fuzz_fusions.draw(rng, sizes, self.words, tied)
        self.drawn = drawn
        self.net, self.text = drawn.net, None
        if isinstance(drawn.fusion, Conditioned):
            self.text = nn.Linear(2, WIDTH)
            self.note = nn.Parameter(torch.randn(2), requires_grad=rng.random() < 0.5)
        self.net.train(sizes.train)
        if sizes.train:
            self.words.append("train")
        self.embeddings = nn.ParameterList()
        equal = len(set(sizes.dims)) == 1
        if case.options["contrastive_weight"] != 0 and (not equal or rng.random() < 0.3):
            self.words.append("embeddings of their own")
            self.embeddings.extend(nn.Parameter(torch.randn(sizes.num_rows, 3)) for _ in sizes.dims)
        self.mcr = mcr_fast.MCRLoss(sizes.dims, sizes.classes, **case.options)
        self._freeze(rng)
        self.hooks = _draw_hooks(rng, self)
        self.task = torch.randn(sizes.num_rows, sizes.classes, dtype=torch.float64)
        self.to_consumer = torch.randn(sizes.num_rows, dtype=torch.float64)

    def _add_latent(self, rng: random.Random, m: int) -> None:
        sizes = self.case.sizes
        n, d, rank = sizes.num_rows, sizes.dims[m], sizes.ranks[m]
        middle = {2: (), 3: (3,), 4: (2, 2)}[rank]
        forms = list(LATENTS)
        if m and (d, rank) == (sizes.dims[m - 1], sizes.ranks[m - 1]):
            forms += ["from the last", "same as the last"]
        form = rng.choice(forms)
        shape = {
            "view": (d, n, *middle),
            "encoded": (n, *middle, 3),
            "expanded": (n, *(1 for _ in middle), d) if middle else (min(n, 1), d),
        }.get(form, (n, *middle, d))
        raw = torch.randn(shape)
        if form == "strided leaf":
            raw = torch.randn(shape[::-1]).permute(*reversed(range(rank)))
        self.raw.append(nn.Parameter(self.case.scale * raw))
        layer = nn.Sequential(nn.Linear(3, d), nn.Tanh()) if form == "encoded" else nn.Identity()
        self.encoders.append(layer)
        self.forms.append(form)
        self.words.append(f"{form} [{rank}]")

    def _freeze(self, rng: random.Random) -> None:
        kind = rng.choice(["nothing"] * 4 + ["latents", "some", "fusion", "all"])
        if kind == "nothing":
            return
        self.words.append(f"frozen: {kind}")
        for name, x in self.named_parameters():
            inside = name.startswith(("raw", "encoders"))
            frozen = {
                "latents": inside and rng.random() < 0.6,
                "some": rng.random() < 0.4,
                "fusion": name.startswith("net"),
                "all": not name.startswith("mcr"),
            }[kind]
            if frozen:
                x.requires_grad_(False)

    def encode(self) -> list[Tensor]:
        """The latents of a step, and what else it computes once."""
        self.latents = []
        for m, (raw, encoder, form) in enumerate(
            zip(self.raw, self.encoders, self.forms, strict=True)
        ):
            self.latents.append(self._latent(m, raw, encoder, form))
        if self.text is not None:
            self.drawn.fusion.condition = self.text(self.note).tanh()
        return self.latents

    def _latent(self, m: int, raw: Tensor, encoder: nn.Module, form: str) -> Tensor:
        if form == "view":
            return raw.movedim(0, -1)
        if form == "expanded":
            n, middle = self.case.sizes.num_rows, self.case.sizes.ranks[m] - 2
            size = {0: (), 1: (3,), 2: (2, 2)}[middle]
            return raw.expand(n, *size, raw.shape[-1])
        if form == "from the last":
            return torch.sin(self.latents[-1]) + raw
        if form == "same as the last":
            return self.latents[-1]
        return encoder(raw)

    def objective(self, out: "mcr_fast.modules.MCROutput") -> Tensor:
        """What is differentiated."""
        settings = self.case.objective
        total = settings["upstream"] * out.loss
        task = (out.logits * self.task.to(out.logits.dtype)).square().sum()
        if settings["task"]:
            total = total + task
        # attention's kernels and recomputation have no second derivative
        smooth = not {"attention", "checkpointed"} & set(self.words)
        if settings["penalty"] and smooth and self.latents[0].requires_grad and task.requires_grad:
            (grad,) = torch.autograd.grad(
                task, self.latents[0], create_graph=True, allow_unused=True
            )
            total = total + (0 if grad is None else grad.square().sum())
        if settings["consumer"]:
            first = self.latents[0].flatten(1).sum(1)
            total = total + (first * self.to_consumer.to(first.dtype)).sum()
        return total


# Gradient hooks


@dataclass
class Hook:
    """A hook of a tensor or module, installed when the step's tensors exist."""

    kind: str  # on a parameter, a latent or a module
    name: str
    act: Callable[[Tensor], Tensor] | None
    calls: int = 0
    size: float = 0.0  # of what it saw

    def __call__(self, x: Tensor, *rest) -> Tensor | None:
        """A tensor hook, a post-accumulate hook or a module's backward hook."""
        self.calls += 1
        if rest:
            return None
        seen = x.grad if self.kind == "post-accumulate" else x
        if seen.numel():
            self.size = float(seen.detach().abs().max())
        if self.kind == "post-accumulate":
            x.grad.mul_(0.5)
            return None
        return None if self.act is None else self.act(x)

    def count_calls(self, module: nn.Module, *rest) -> None:
        """A forward hook: a module's backward hook is called once a call."""
        self.calls += 1

    def install(self, world: World) -> None:
        """Register it."""
        if self.kind == "latent":
            latent = world.latents[int(self.name)]
            if latent.requires_grad:
                latent.register_hook(self)
        elif self.kind == "module":
            world.get_submodule(self.name).register_full_backward_hook(self)
        else:
            parameter = world.get_parameter(self.name)
            if not parameter.requires_grad:
                return
            if self.kind == "post-accumulate":
                parameter.register_post_accumulate_grad_hook(self)
            else:
                parameter.register_hook(self)


ACTS = (None, lambda g: 0.1 * g, lambda g: g.clamp(-0.05, 0.05), lambda g: -2 * g)


def _draw_hooks(rng: random.Random, world: World) -> list[Hook]:
    if rng.random() < 0.6:
        return []
    hooks = []
    names = [name for name, _ in world.named_parameters() if not name.startswith("mcr")]
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(["parameter", "parameter", "latent", "post-accumulate", "module"])
        name = rng.choice(names)
        if kind == "latent":
            name = str(rng.randrange(len(world.raw)))
        if kind == "module":
            linears = _hookable(world)
            if not linears:
                continue
            name = rng.choice(linears)
        hooks.append(Hook(kind, name, rng.choice(ACTS)))
        world.words.append(f"{kind} hook")
    return hooks


def _hookable(world: World) -> list[str]:
    """Layers whose output nothing overwrites, which the hook's own node would not allow."""
    careful = any(word in ("in-place layer", "nested") for word in world.words)
    return [
        name
        for name, x in world.named_modules()
        if type(x) is nn.Linear
        and not x._forward_pre_hooks
        and not (careful and name.startswith("net"))
    ]


def in_dtype(case: Case, dtype: torch.dtype) -> dict:
    """The data of forward in a dtype."""
    weight = case.data["sample_weight"]
    return {**case.data, "sample_weight": None if weight is None else weight.to(dtype)}


__all__ = ["Case", "Drawn", "Hook", "World", "draw", "in_dtype"]
