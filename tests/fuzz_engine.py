"""A fuzz of the engine: random fusions, latents and options against plain autograd in float64.

    python tests/fuzz_engine.py --seeds 0:10000     # many seeds, failures by kind
    python tests/fuzz_engine.py --seeds 17 -v       # one, with all that was drawn

A case is made from its seed alone: `fuzz_cases` draws it, `fuzz_fusions` and `fuzz_layers` are the
grammar, `fuzz_oracle` says what is right. `run` compares the outputs, every gradient, what hooks
saw, what the caller's tensors and buffers hold afterwards, and where generators end.
"""

import argparse
import collections
import sys
import time
import warnings
from dataclasses import dataclass

import fuzz_cases
import fuzz_oracle
import torch
from fuzz_cases import Case, Hook, World
from tolerances import TABLE, eps
from torch import Tensor

OUTPUTS = ("logits", "divergences", "mipd", "contrastive", "ceb", "loss", "importance")


class Mismatch(Exception):
    """What the engine gave is not what it had to give."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")
        self.kind = kind


@dataclass
class Run:
    """What one world gave."""

    outputs: dict[str, Tensor]
    grads: dict[str, Tensor]  # zeros where there is none
    hooks: list[Hook]
    buffers: dict[str, Tensor]
    default_state: Tensor  # of torch's default generator
    source_state: Tensor | None
    words: list[str]


def _world(case: Case, dtype: torch.dtype) -> World:
    # the same float32 numbers in every dtype, those of the step
    return World(case).to(dtype)


def _source(world: World) -> torch.Generator | None:
    """Layers that draw make the default generator's numbers the clean call's."""
    case = world.case
    if "train" in world.words:
        case.own_generator = True
    return fuzz_oracle.source_of(case)


def _install_hooks(world: World, hooks: list[Hook]) -> None:
    if world.case.objective["no_grad"]:
        return
    for hook in hooks:
        hook.install(world)
    for z in world.latents:
        if world.case.objective["retain_grad"] and z.requires_grad:
            z.retain_grad()


def _finish(world: World, out, source: torch.Generator | None) -> Run:
    if not world.case.objective["no_grad"]:
        total = world.objective(out)
        twice = world.case.objective["backward_twice"]
        for retain in (True, False) if twice else (False,):
            if total.requires_grad:
                total.backward(retain_graph=retain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # .grad of a tensor that is no leaf
        named = [*world.named_parameters(), *((f"latent.{m}", z) for m, z in _kept(world))]
        grads = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in named}
    outputs = {name: getattr(out, name).detach() for name in OUTPUTS}
    # shares of next to nothing are no numbers to compare
    single = outputs["divergences"][: len(world.latents)].clamp(min=0)
    outputs["importance"] = outputs["importance"] * single.sum()
    return Run(
        outputs,
        grads,
        world.hooks,
        dict(world.named_buffers()),
        torch.random.get_rng_state(),
        None if source is None else source.get_state(),
        world.words,
    )


def run_oracle(case: Case, dtype: torch.dtype) -> Run:
    world = _world(case, dtype)
    source = _source(world)
    torch.default_generator.manual_seed(case.seed)
    out = fuzz_oracle.truth(world, case.dtype, source)
    _install_hooks(world, [hook for hook in world.hooks if hook.kind != "module"])
    return _finish(world, out, source)


def _kept(world: World) -> list[tuple[int, Tensor]]:
    kept = world.case.objective["retain_grad"] and not world.case.objective["no_grad"]
    return [(m, z) for m, z in enumerate(world.latents) if kept and z.requires_grad]


def run_engine(case: Case) -> Run:
    world = _world(case, case.dtype)
    source = _source(world)
    torch.default_generator.manual_seed(case.seed)
    with torch.set_grad_enabled(not case.objective["no_grad"]):
        _install_hooks(world, [hook for hook in world.hooks if hook.kind == "module"])
        latents = world.encode()
        logits = _given_logits(world, latents)
        _install_hooks(world, [hook for hook in world.hooks if hook.kind != "module"])
        before = _callers(world, latents)
        held = [x.clone() for x in before]
        modes = [x.training for x in world.modules()]
        out = world.mcr(
            latents,
            case.labels,
            fusion=world.drawn.fusion,
            logits=logits,
            permutations=case.permutations,
            embeddings=list(world.embeddings) or None,
            generator=source,
            **fuzz_cases.in_dtype(case, case.dtype),
        )
    if modes != [x.training for x in world.modules()]:
        raise Mismatch("training mode", "a module is left in another mode")
    if case.objective["no_grad"] and out.loss.requires_grad:
        raise Mismatch("no_grad", "the loss requires a gradient")
    result = _finish(world, out, source)
    for x, old in zip(before, held, strict=True):
        if not torch.equal(x, old):
            raise Mismatch("written", f"a tensor of the caller's, {list(x.shape)}")
    return result


def _callers(world: World, latents: list[Tensor]) -> list[Tensor]:
    return [x.detach() for x in [*latents, *world.parameters()]]


def _given_logits(world: World, latents: list[Tensor]) -> Tensor | None:
    """Known logits, of a fusion whose runs do not differ."""
    if not world.case.objective["give_logits"] or "train" in world.words:
        return None
    logits = world.drawn.apply([z.clone() for z in latents])
    if not logits.requires_grad and any(z.requires_grad for z in latents):
        return None  # detached, as it looks, which is refused
    world.words.append("logits given")
    return logits


# Comparing


def _error(a: Tensor, b: Tensor) -> float:
    """The largest difference; NaN in one only is infinitely far."""
    if a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    difference = torch.where(a.isnan() & b.isnan(), 0, (a - b).abs())
    return float(difference.nan_to_num(nan=float("inf")).max())


def _size(x: Tensor) -> float:
    return float(x.detach().double().abs().nan_to_num().max()) if x.numel() else 0.0


def _compare(case: Case, kind: str, ours: dict, truth: dict, plain: dict | None, k: float):
    """The worst of several tensors that add up to one another or are computed from another."""
    # embeddings of width 1 have gradients that cancel altogether when they are normalised
    floor = 0.1 if case.options["contrastive_weight"] else 1e-3
    scale = max([1.0 if kind == "value" else floor, *map(_size, truth.values())])
    worst = (0.0, "", "")
    for name, wanted in truth.items():
        if ours[name].shape != wanted.shape:
            raise Mismatch(kind, f"{name} {list(ours[name].shape)}, not {list(wanted.shape)}")
        if case.dtype == torch.float64:
            bound = 1e-10 * (scale + 1)
        else:
            bound = 2 * _error(plain[name], wanted) + k * eps(case.dtype) * scale
        error = _error(ours[name], wanted)
        if not error <= bound and error / bound > worst[0]:
            worst = (
                error / bound,
                name,
                f"off by {error:.2e} > {bound:.2e} of {_size(wanted):.2e}",
            )
    if worst[1]:
        group = worst[1].split(".")[0] if kind == "gradient" else worst[1]
        raise Mismatch(f"{kind} of {group}", f"{worst[1]} {worst[2]}")


def _compare_runs(case: Case, ours: Run, truth: Run, plain: Run | None) -> None:
    tolerance = TABLE["engine"]
    for part in ("outputs", "grads", "buffers"):
        kind = {"outputs": "value", "grads": "gradient", "buffers": "buffer"}[part]
        k = tolerance.value if part == "outputs" else tolerance.gradient
        other = None if plain is None else getattr(plain, part)
        _compare(case, kind, getattr(ours, part), getattr(truth, part), other, k)
    if case.objective["no_grad"]:
        return
    passes = 1 + case.objective["backward_twice"] + case.objective["penalty"]
    for a, b in zip(ours.hooks, truth.hooks, strict=True):
        # where every factor is 0 there may be zeros or nothing
        most = max(b.calls, 1) * passes if a.kind == "module" else max(b.calls, passes)
        if a.calls > most or (a.calls == 0 and b.size > 1e-6):
            raise Mismatch(f"hook of a {a.kind}", f"called {a.calls} times, not {b.calls}")


def _compare_generators(case: Case, ours: Run, truth: Run) -> None:
    if ours.source_state is None:
        return
    if not torch.equal(ours.source_state, truth.source_state):
        raise Mismatch("generator", "the caller's generator ends elsewhere")
    one_call = "logits given" not in ours.words and case.dtype == torch.float64
    if one_call and not torch.equal(ours.default_state, truth.default_state):
        raise Mismatch("generator", "torch's default generator ends elsewhere")


def _may_refuse(world: World) -> bool:
    """What has a value, but may be refused by name instead."""
    twice = "same as the last" in world.forms and world.case.options["clean_path"] == "routed"
    own_forward = any(word in ("adapter", "cosine") for word in world.words)
    return twice or (own_forward and not world.drawn.takes_tensor)


def check(seed: int) -> bool:
    """Raise Mismatch, or what the engine raises, where a seed's case does not come out right.

    False: it was refused, as it may be.
    """
    case = fuzz_cases.draw(seed)
    truth = run_oracle(case, torch.float64)
    plain = None if case.dtype == torch.float64 else run_oracle(case, case.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ours = run_engine(case)
        except (TypeError, ValueError) as error:
            if _may_refuse(World(case)) and ("fusion" in str(error) or "latents" in str(error)):
                return False
            raise
    _compare_runs(case, ours, truth, plain)
    _compare_generators(case, ours, truth)
    return True


def describe(seed: int) -> str:
    """All that was drawn."""
    case = fuzz_cases.draw(seed)
    return f"seed {seed}: {World(case).words}\n{case}"


def outcome(seed: int) -> tuple[str, str] | None:
    """The kind of failure and its text, None where all is right or rightly refused."""
    try:
        check(seed)
    except Mismatch as error:
        return error.kind, str(error)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        return f"raises {text[:70]}", text
    return None


def _seeds(text: str) -> range:
    first, _, last = text.partition(":")
    return range(int(first), int(last) if last else int(first) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=_seeds, default=range(1000), help="FIRST:LAST, or one seed")
    parser.add_argument("-v", "--verbose", action="store_true", help="describe what fails")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)  # old normalisations are in use
    start, kinds = time.perf_counter(), collections.defaultdict(list)
    for seed in arguments.seeds:
        failure = outcome(seed)
        if failure is None:
            continue
        kinds[failure[0]].append(seed)
        if len(kinds[failure[0]]) <= 3:
            print(describe(seed) if arguments.verbose else f"seed {seed}", "\n ", failure[1])
            sys.stdout.flush()
    seconds, count = time.perf_counter() - start, len(arguments.seeds)
    print(f"\n{count} cases, {1e3 * seconds / max(count, 1):.1f} ms each")
    for kind, seeds in sorted(kinds.items(), key=lambda item: -len(item[1])):
        print(f"{len(seeds):6d}  {kind}   seeds {', '.join(map(str, seeds[:8]))}")
    failed = sum(map(len, kinds.values()))
    print(f"{failed:6d}  failed")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
