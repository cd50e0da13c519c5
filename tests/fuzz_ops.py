"""Calls the dispatcher's ops with arguments that nobody would give them; none may crash.

`python tests/fuzz_ops.py SEED COUNT` prints how many calls were refused and how many returned.
A program, so that a crash ends only itself: test_bad_inputs.py runs it, and `.ci/sanitize` does
under AddressSanitizer. With a third argument it says each call before it makes it.
"""

import random
import sys

import torch

from mcr_fast._names import DIVERGENCES
from mcr_fast.ops.registry import schemas

M, N, C, K = 2, 6, 3, 2
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)
WORDS = ("jsd", "mse", "greedy", "routed", "self", "same_label", "none", "", "detached")
NUMBERS = (-1, 0, 1, 2, 3, 7, 1 << 20, -(1 << 40), (1 << 63) - 1)


def pairs(x, rng):
    """What permuted_divergence takes behind the contributions, all of it right."""
    cyclic = rng.random() < 0.5
    order = torch.randperm(N) if cyclic else None
    table = torch.stack([torch.randperm(N) for _ in range(K)])
    donors = torch.tensor([[1, 3]]) if cyclic else table.repeat(rng.choice([1, M]), 1, 1)
    tensors = [torch.randn(C), order, donors, torch.randint(0, 2, (N,)), torch.rand(N, M) < 0.7]
    strategy = rng.choice(["greedy", "independent", "collaborative"])
    exclude = rng.choice(["none", "self", "same_label"])
    kind = rng.choice(DIVERGENCES)
    return [*tensors, torch.rand(N), [1, 2], strategy, "shared", kind, exclude]


def calls(rng):
    """Each op with right arguments."""
    x = torch.randn(M, N, C)
    latents, weight = [torch.randn(N, 4), torch.randn(N, 2)], torch.randn(C, 6)
    even = [torch.randn(N, 4) for _ in range(M)]
    rows = torch.randn(7, C), torch.randn(N, C)
    held = torch.randint(0, N, (7,)), torch.rand(7), "jsd"
    unit = [torch.rand(M), torch.randn(M, N, C), torch.randn(C), x]
    embeddings = [torch.randn(N, 4), torch.randint(0, 2, (N,)), torch.rand(N) < 0.7]
    anchors = [x[:4].clone() for x in embeddings]
    block = [*anchors, *embeddings, rng.choice([-1, 0, 2]), rng.choice(["nt_xent", "sup_con"])]
    return {
        "permuted_divergence_fwd": [x, *pairs(x, rng), rng.random() < 0.5],
        "permuted_divergence_bwd": [*unit, *pairs(x, rng)],
        "linear_permuted_divergence_fwd": [latents, weight, *pairs(x, rng), True],
        "linear_permuted_divergence_bwd": [
            *unit, None, [1, 1, 1], latents, weight, *pairs(x, rng),
        ],
        "regularizer_fwd": [
            even, torch.randn(C, 8), *pairs(x, rng), embeddings[1], "nt_xent", 0.5, 0.1, 1.0, True,
        ],
        "regularizer_bwd": [
            *(torch.rand(()) for _ in range(3)), torch.randn(N, C), *unit[1:3],
            torch.randn(M * N, 4), 0.1, 1.0, [1, 1, 1], even, torch.randn(C, 8),
        ],
        "row_divergence_fwd": [*rows, *held, True, False, True],
        "row_divergence_bwd": [
            *(torch.rand(()) for _ in range(2)), *(torch.randn_like(r) for r in rows), *rows,
            *held, False,
        ],
        "nt_xent_fwd": [*embeddings, 0.5, True],
        "nt_xent_bwd": [torch.rand(()), torch.randn(N, 4), torch.float32],
        "sup_con_fwd": [*embeddings, 0.5, True],
        "sup_con_bwd": [torch.rand(()), torch.randn(N, 4), torch.float32],
        "contrastive_sums": [*block, 0.5],
        "contrastive_pairs": [*block, torch.randn(4), 0.5],
        "contrastive_gradient": [*block, torch.randn(2, 4), torch.randn(2, N), 0.5],
        "reconstruction_loss_fwd": [latents, torch.randn(N, 6)],
        "reconstruction_loss_bwd": [torch.rand(()), latents, torch.randn(N, 6)],
        "first_non_permutation": [torch.stack([torch.randperm(N)] * 2)],
    }  # fmt: skip


def broken_tensor(x, rng):
    """A tensor of another shape, dtype, layout or of other values."""
    shape = list(x.shape)
    changes = [
        lambda: x[..., :-1] if x.ndim else x[None],
        lambda: x[:0] if x.ndim else x,
        lambda: x[None],
        lambda: x.reshape(-1),
        lambda: x.to(rng.choice(DTYPES)),
        lambda: x.repeat_interleave(2, -1)[..., ::2] if x.ndim else x,
        lambda: x.flatten()[:1].expand(shape) if x.ndim and x.numel() else x,
        lambda: x.transpose(0, -1).contiguous().transpose(0, -1) if x.ndim else x,
        lambda: x.new_zeros([rng.choice([0, 1, 2, 9]) for _ in shape]),
        lambda: x.to("meta"),
        lambda: torch.full_like(x, rng.choice(NUMBERS)) if x.dtype == torch.int64 else x + 1,
        lambda: x * float("inf") if x.is_floating_point() else -x.long(),
    ]
    return rng.choice(changes)()


def broken(value, rng):
    """Something else in the place of an argument."""
    if isinstance(value, torch.Tensor):
        return None if rng.random() < 0.1 else broken_tensor(value, rng)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        changed = list(value)
        changed[rng.randrange(len(value))] = broken_tensor(rng.choice(value), rng)
        return rng.choice([changed, [], value[:1], value * 5])
    if isinstance(value, list):
        return [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, float("nan"), float("inf"), 1e-30])
    if isinstance(value, str):
        return rng.choice(WORDS)
    if isinstance(value, torch.dtype):
        return rng.choice(DTYPES)
    return rng.choice([None, torch.randn(M, N, C)])


def main() -> None:
    seed, count, *aloud = sys.argv[1:]
    rng = random.Random(int(seed))
    torch.manual_seed(int(seed))
    missing = set(schemas()) - set(calls(rng))
    assert not missing, f"calls() has no arguments for {sorted(missing)}"
    refused = 0
    for _ in range(int(count)):
        name, arguments = rng.choice(list(calls(rng).items()))
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            at = rng.randrange(len(arguments))
            arguments[at] = broken(arguments[at], rng)
        if aloud:
            print(name, arguments, flush=True)
        try:
            getattr(torch.ops.mcr_fast, name).default(*arguments)
        except Exception:  # in whatever words: the fakes that "meta" tensors meet check nothing
            refused += 1
    print(refused, int(count) - refused)


if __name__ == "__main__":
    main()
