"""What no op may read past a tensor for, compiled or not: as cases, and as a program.

`python tests/bad_inputs.py eager` runs the cases of one of torch.compile's backends, or `plain` for
no compiler at all, and prints a line a case; further words name the cases to run. It is a program
so that a crash ends only itself: test_bad_inputs.py reads the lines, `.ci/sanitize` runs it under
AddressSanitizer.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import mcr_fast
from mcr_fast import functional

N, C = 8, 5
WIDTHS = (3, 4)
FAR = 1 << 40  # rows away: no process has that memory


@dataclass
class Case:
    """A call that must be refused, or give NaN: run(*grads, *arguments)."""

    name: str
    run: Callable[..., Tensor]
    grads: tuple[Tensor, ...]  # what gets gradients
    arguments: tuple[Tensor, ...]  # what is wrong
    whole: bool = True  # one graph: the engine of fusions that do not add up is none


def _latents(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(torch.randn(N, width, dtype=dtype) for width in WIDTHS)


def tables() -> dict[str, Tensor]:
    """Donor tables that are none."""
    good = torch.arange(N).repeat(3, 1)
    tables = {name: good.clone() for name in ("far", "before", "past the end", "twice", "own")}
    tables["far"][1, 2] = FAR
    tables["before"][1, 2] = -1
    tables["past the end"][2, 0] = N
    tables["twice"][2, 1] = 0
    tables["own"] = torch.stack([good, tables["far"]])
    return tables


def cyclic() -> dict[str, tuple[Tensor, Tensor]]:
    """Orders and shifts that are none."""
    order = torch.randperm(N)
    wrong = {"far": FAR, "before": -1, "past the end": N, "twice": int(order[0])}
    cases = {}
    for name, row in wrong.items():
        cases[f"order {name}"] = order.clone(), torch.tensor([1, 2])
        cases[f"order {name}"][0][3] = row
    for name, shift in {"far": FAR, "before": -3, "zero": 0, "all rows": N}.items():
        cases[f"shift {name}"] = order, torch.tensor([1, shift])
    return cases


def _divergence_cases(backend: str | None, dtype: torch.dtype) -> list[Case]:
    contributions = torch.randn(2, N, C, dtype=dtype)

    def table(a: Tensor, t: Tensor, **options) -> Tensor:
        return functional.permuted_divergence(a, t, backend=backend, **options)

    def shifted(a: Tensor, order: Tensor, shifts: Tensor) -> Tensor:
        sample = mcr_fast.CyclicPermutations(order, shifts)
        return functional.permuted_divergence(a, sample, backend=backend)

    def linear(a: Tensor, b: Tensor, weight: Tensor, t: Tensor) -> Tensor:
        return functional.linear_permuted_divergence([a, b], weight, t, backend=backend)

    def rows(w: Tensor, z: Tensor, r: Tensor) -> Tensor:
        return functional.row_divergence(w, z, r, backend=backend)

    of_latents = (*_latents(dtype), torch.randn(C, sum(WIDTHS), dtype=dtype))
    far = tables()["far"]
    cases = [Case(f"table {name}", table, (contributions,), (t,)) for name, t in tables().items()]
    for exclude in ("self", "same_label"):
        options = {"exclude": exclude, "labels": torch.arange(N)}
        masked = lambda a, t, options=options: table(a, t, **options)  # noqa: E731
        cases.append(Case(f"table far, exclude {exclude}", masked, (contributions,), (far,)))
    present = lambda a, t, p: table(a, t, present=p)  # noqa: E731
    there = torch.ones(N, 2, dtype=torch.bool)
    cases.append(Case("table far, present", present, (contributions,), (far, there)))
    weighted = lambda a, w: table(a, None, sample_weight=w)  # noqa: E731
    cases.append(Case("weight", weighted, (contributions,), (torch.linspace(-1, 1, N),)))
    cases += [Case(f"cyclic {k}", shifted, (contributions,), x) for k, x in cyclic().items()]
    cases += [Case(f"linear {k}", linear, of_latents, (tables()[k],)) for k in ("far", "twice")]
    held = (torch.randn(3, C, dtype=dtype), torch.randn(N, C, dtype=dtype))
    for name, row in {"far": FAR, "before": -1, "past the end": N}.items():
        cases.append(Case(f"rows {name}", rows, held, (torch.tensor([0, row, 2]),)))
    return cases


def _module_cases(backend: str | None, dtype: torch.dtype) -> list[Case]:
    linear = nn.Linear(sum(WIDTHS), C).to(dtype)
    loss = mcr_fast.MCRLoss(WIDTHS, C, contrastive_weight=0, num_permutations=3, backend=backend)
    third = mcr_fast.MCRLoss(
        WIDTHS, C, mipd_weight=0, contrastive_weight=0, ceb_weight=1, ceb_source="labels",
        backend=backend,
    ).to(dtype)  # fmt: skip

    def mipd(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return loss([a, b], None, fusion=linear, permutations=t).loss

    def ceb(a: Tensor, b: Tensor, labels: Tensor) -> Tensor:
        return third([a, b], labels, fusion=linear).loss

    latents = _latents(dtype)
    cases = [
        Case(f"MCRLoss, table {k}", mipd, latents, (tables()[k],)) for k in ("far", "own", "twice")
    ]
    first, tanh, last = nn.Linear(sum(WIDTHS), 6), nn.Tanh(), nn.Linear(6, C)
    head = nn.Sequential(first, tanh, last).to(dtype)
    fusions = {
        "callable": lambda parts: head(torch.cat(parts, 1)),
        "head": mcr_fast.AdditiveFusion.from_sequential(head, WIDTHS),
    }
    for name, fusion in fusions.items():

        def engine(a: Tensor, b: Tensor, t: Tensor, fusion=fusion) -> Tensor:
            return loss([a, b], None, fusion=fusion, permutations=t).loss

        def shifted(a: Tensor, b: Tensor, order: Tensor, shifts: Tensor, engine=engine) -> Tensor:
            return engine(a, b, mcr_fast.CyclicPermutations(order, shifts))

        for k in ("far", "twice"):
            cases.append(Case(f"{name}, table {k}", engine, latents, (tables()[k],), False))
        for k in ("order far", "order twice", "shift far"):
            cases.append(Case(f"{name}, {k}", shifted, latents, cyclic()[k], False))
    for name, label in {"far": FAR, "before": -1, "past the end": C}.items():
        labels = torch.arange(N) % C
        labels[3] = label
        cases.append(Case(f"MCRLoss, label {name}", ceb, latents, (labels,)))
    return cases


def cases(backend: str | None, dtype: torch.dtype) -> list[Case]:
    """Every case for a backend of the ops."""
    torch.manual_seed(0)
    return _divergence_cases(backend, dtype) + _module_cases(backend, dtype)


def outcome(case: Case, compiler: str) -> str:
    """`refused` with the words, `NaN`, or what came out all the same."""
    grads = [x.detach().clone().requires_grad_() for x in case.grads]
    run = case.run
    if compiler != "plain":
        torch._dynamo.reset()
        run = torch.compile(run, backend=compiler, fullgraph=case.whole)
    try:
        value = run(*grads, *case.arguments).sum()
        value.backward()
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        return f"refused: {' '.join(str(error).split())}"
    gradients = [x.grad.isnan().any().item() for x in grads]
    if value.isnan() and all(gradients):
        return "NaN"
    return f"ACCEPTED: {value.item()}, gradients NaN {gradients}"


def main() -> None:
    """Print a line for every case: the ops' backend, the case, the outcome."""
    warnings.simplefilter("ignore")
    compiler, *chosen = sys.argv[1:]
    for backend, dtype in ((None, torch.float32), ("reference", torch.float32)):
        for case in cases(backend, dtype):
            if chosen and case.name not in chosen:
                continue
            print(backend, "|", case.name, "|", outcome(case, compiler), flush=True)


if __name__ == "__main__":
    main()
