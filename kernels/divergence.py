"""The divergence of a pair on tiles [BLOCK_R, BLOCK_C]: one interface, each kind a branch of it.

A kernel knows a divergence by KIND, a constexpr, and by these four:

- `clean_rows`: what a program keeps of its clean rows;
- `divergence_of_pair`: the value of each row's pair, its gradient to the perturbed row, and what
  the row adds up for its own gradient; of a JSD also two numbers for each pair, which the donor
  side takes in place of the sums over classes that it does not make;
- `finish_rows`: the gradient to the clean rows from what they added up;
- `gradient_of_pair`: the gradient to the perturbed row alone, on the donor side.

Logits are in units of log2 inside (`in_log2`), values and gradients in those of ln 2 / 2 nats
(`in_nats`); what reads no logits has no units. A pair's value is never below 0, and NaN stays NaN.

With d = log2(q / p), r = 2^d and g = log2((1 + r) / 2):

    log2(q / m) = d - g,   log2(p / m) = -g,   2 JSD / ln 2 = sum_c q (d - g) - p g

d comes from the difference of the logits and not from two rounded logs. The plain form costs one
power and one logarithm for each class. It loses digits of the value where all ratios are near 1,
and range where a class has next to no probability: there `log_ratios` takes over, which is right
for every d and costs twice as much. What it needs besides, a function of the caller reads, READ:
by then the registers of the plain form are free.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mcr_fast._names import OF_LOGITS
from mcr_fast.kernels.math import HALF_LN2, LOG2E, exp2, log2, reciprocal

JSD = tl.constexpr(0)
SQUARED_ERROR = tl.constexpr(1)
BINARY_JSD = tl.constexpr(2)
KINDS = {"jsd": JSD.value, "mse": SQUARED_ERROR.value, "binary_jsd": BINARY_JSD.value}
NATS = {name: HALF_LN2.value if name in OF_LOGITS else 1.0 for name in KINDS}  # of its unit
STORED = {"jsd"}  # the donor side wants `stats` and the clean rows' p, lse and normal

# Below it KL(q|m) / ln 2 of a row is summed again: g has an absolute error of 2^-22.6, which is
# then more than what a row's logits are known to.
NEAR = tl.constexpr(0.05)
# Probabilities below 2^LOW are too close to underflow to be multiplied by r.
LOW = tl.constexpr(-100.0)
# Sums whose log2 is nearer to 0 are in range, their inverses and products too; NaN is not nearer.
IN_RANGE = tl.constexpr(60.0)
NEAR_RATIO = tl.constexpr(0.5)
# No logit is taken to be further from 0: a mask as large as the largest number there is stays a
# number in units of log2, in sums of contributions and in sums over rows.
FARTHEST = tl.constexpr(1e20)
# log2 cosh(x ln 2 / 2), its series in x^2.
COSH_1 = tl.constexpr(0.08664339756999316)
COSH_2 = tl.constexpr(-0.0017345033957756745)
COSH_3 = tl.constexpr(5.555649227678517e-05)


class Clean(NamedTuple):
    """What a program keeps of its clean rows; of p, lse and normal only a JSD has any."""

    z: Any  # [BLOCK_R, BLOCK_C] in log2 units
    p: Any  # [BLOCK_R, BLOCK_C] softmax
    lse: Any  # [BLOCK_R] log2 sum 2^z
    normal: Any  # [BLOCK_R] whether p is far from underflow


class Pair(NamedTuple):
    """One pair of each row of a program: its divergence and what comes with it."""

    value: Any  # [BLOCK_R]
    to_perturbed: Any  # [BLOCK_R, BLOCK_C] u
    to_clean: Any  # [BLOCK_R, BLOCK_C] what `finish_rows` makes v of, summed over a row's pairs
    # [BLOCK_R] of a JSD, 1 in its plain form, else 0: there the value, unless WHOLE, lacks
    # sum p to_clean, which `finish_rows` tells
    due: Any
    shift: Any  # [BLOCK_R] of a JSD, log2 of the sum of p 2^step
    kl: Any  # [BLOCK_R] of a JSD, KL(q|m) / ln 2


@triton.constexpr_function
def of_logits(kind):
    """Whether that divergence reads logits."""
    return any(kind == KINDS[name] for name in OF_LOGITS)


@triton.jit
def in_log2(x, KIND: tl.constexpr):
    """Logits, or their differences, in the divergence's units."""
    return x * (LOG2E if of_logits(KIND) else 1.0)


@triton.jit
def in_nats(x, KIND: tl.constexpr):
    """Values or gradients in nats, from the divergence's units."""
    return x * (HALF_LN2 if of_logits(KIND) else 1.0)


@triton.jit
def not_below_0(x):
    """0 for what a rounding took below it; NaN stays."""
    return tl.where(x <= 0.0, 0.0, x)


@triton.jit
def saturated(x):
    """x within +-FARTHEST; NaN where it is not finite."""
    return tl.minimum(tl.maximum(x, -FARTHEST), FARTHEST) + 0.0 * x


@triton.jit
def log_ratios(d, PRECISE: tl.constexpr):
    """log2(q/m) and log2(p/m) from d = log2(q/p), to eps of their own size for small d."""
    t = exp2(-tl.abs(d), PRECISE)
    h = log2(tl.fma(t, 0.5, 0.5), PRECISE)
    x = d * d
    even = x * tl.fma(tl.fma(x, COSH_3, COSH_2), x, COSH_1)
    near = tl.abs(d) < NEAR_RATIO
    log2_qm = tl.where(near, 0.5 * d - even, tl.minimum(d, 0.0) - h)
    log2_pm = tl.where(near, -0.5 * d - even, tl.minimum(-d, 0.0) - h)
    return log2_qm, log2_pm


@triton.jit
def clean_softmax(z, PRECISE: tl.constexpr):
    """p, log2(sum 2^z) and whether p is far from underflow; z is -inf outside the classes."""
    top = tl.max(z, 1)
    total = tl.sum(exp2(z - top[:, None], PRECISE), 1)
    lse = top + log2(total, PRECISE)
    lowest = tl.min(tl.where(z == -float("inf"), float("inf"), z), 1)
    return exp2(z - lse[:, None], PRECISE), lse, lowest - lse > LOW


@triton.jit
def plain_jsd(delta, p, PRECISE: tl.constexpr):
    """softmax(z + delta) against p = softmax(z), where neither is near the other or underflow.

    delta is 0 and p is 0 outside the classes. Returns, in this order, what u and v are made of,

        u = q (log2(q/m) - KL) = mass * fma(log, scale, offset),   g = -log2(p/m),

    then KL = KL(q|m) / ln 2, shift = log2 sum p 2^delta, whether that sum is in range, and whether
    the row is as plain as that.
    """
    ratio = exp2(delta, PRECISE)
    mass = p * ratio
    total = tl.sum(mass, 1)
    scale = reciprocal(total, PRECISE)
    shift = log2(total, PRECISE)
    g = log2(tl.fma(ratio, 0.5 * scale[:, None], 0.5), PRECISE)
    log = (delta - shift[:, None]) - g
    kl = tl.sum(mass * log, 1) * scale
    in_range = tl.abs(shift) < IN_RANGE
    return mass, log, scale, -kl * scale, g, kl, shift, in_range, in_range & (kl > NEAR)


@triton.jit
def careful_jsd(delta, p, w, in_range, PRECISE: tl.constexpr):
    """As `plain_jsd`, for any delta; w less the clean row's lse, -inf outside the classes.

    q comes from w itself, of which z and the difference tell nothing where z is a mask. Where it is
    in range, the shift comes from powers of differences: the largest logit that the other one
    starts from loses eps of the logits, which nearby rows may not differ by.
    """
    top = tl.max(w, 1)
    mass = exp2(w - top[:, None], PRECISE)
    total = tl.sum(mass, 1)
    centred = log2(tl.sum(p * exp2(delta, PRECISE), 1), PRECISE)
    shift = tl.where(in_range, centred, top + log2(total, PRECISE))
    log2_qm, log2_pm = log_ratios(delta - shift[:, None], PRECISE)
    # an infinite logit leaves no trace in a maximum or a power
    poison = 0.0 * delta
    mass = mass * reciprocal(total, PRECISE)[:, None] + poison
    kl = tl.sum(mass * log2_qm, 1)
    return mass, log2_qm, tl.full(kl.shape, 1.0, tl.float32), -kl, poison - log2_pm, kl, shift


@triton.jit
def jsd_of_pair(
    step, clean, kept, READ: tl.constexpr, source, WHOLE: tl.constexpr, PRECISE: tl.constexpr
):
    """The JSD as `divergence_of_pair` has it, in its plain form where all kept rows allow that.

    Without WHOLE a plain pair leaves KL(p|m), half of its value, to the end of the row, where it is
    one sum for all pairs. Such a pair is above 0 by more than any rounding. Any other pair is
    clamped here and leaves nothing: its g goes less its mean, which the gradient does not feel.
    """
    mass, log, scale, offset, g, kl, shift, in_range, plain = plain_jsd(step, clean.p, PRECISE)
    value = kl
    due = kept.to(tl.float32)
    if tl.min(((plain & clean.normal) | ~kept).to(tl.int32), 0) == 0:
        careful_step, w, exact = READ(source, True)
        mass, log, scale, offset, g, kl, shift = careful_jsd(
            careful_step, clean.p, w, in_range & exact, PRECISE
        )
        value = kl
        due = tl.zeros(kl.shape, tl.float32)
        if not WHOLE:
            mean = tl.sum(clean.p * g, 1)
            g -= mean[:, None]
            value = not_below_0(kl - mean)
    if WHOLE:
        value = not_below_0(kl - tl.sum(clean.p * g, 1))
    u = mass * tl.fma(log, scale[:, None], offset[:, None])
    return Pair(value, u, -g, due, shift, kl)


@triton.jit
def logistic(x, PRECISE: tl.constexpr):
    """sigmoid(x), 1 - sigmoid(x) and log2(1 + 2^-|x|) of x in log2 units.

    log2 sigmoid(x) is min(x, 0) less the last of them.
    """
    t = exp2(-tl.abs(x), PRECISE)
    larger = reciprocal(1.0 + t, PRECISE)
    smaller = t * larger
    excess = log2(1.0 + t, PRECISE) + 0.0 * x
    return tl.where(x > 0, larger, smaller), tl.where(x > 0, smaller, larger), excess


@triton.jit
def binary_terms(step, on, off, excess, z, w, PRECISE: tl.constexpr):
    """Per class: 2 JSD / ln 2 of the two outcomes, and its gradients to w and to z.

    `step` is w - z, which has digits of its own. The gradients lack the factors ln 2 / 2 and, to
    z, on * off.
    """
    q_on, q_off, q_excess = logistic(w, PRECISE)
    change = q_excess - excess
    # Between logits of one sign the log of the rarer outcome changes by the step, that of the other
    # one by nothing: neither comes from the other, which would be a difference of masks.
    rarer_on = tl.where(tl.maximum(z, w) < 0.0, step, tl.minimum(w, 0.0) - tl.minimum(z, 0.0))
    rarer_off = tl.where(tl.minimum(z, w) > 0.0, -step, tl.maximum(z, 0.0) - tl.maximum(w, 0.0))
    qm_on, pm_on = log_ratios(rarer_on - change, PRECISE)
    qm_off, pm_off = log_ratios(rarer_off - change, PRECISE)
    value = on * pm_on + q_on * qm_on + off * pm_off + q_off * qm_off
    return value, q_on * q_off * (qm_on - qm_off), pm_on - pm_off


@triton.jit
def squared_error(step, finite):
    """The gradient to w; NaN, as of the other divergences, where `finite` is not."""
    return 2.0 * (step + 0.0 * finite)


@triton.jit
def clean_rows(z, real, inside, KIND: tl.constexpr, PRECISE: tl.constexpr):
    """What is kept of clean logits z [BLOCK_R, BLOCK_C]; `real` classes, rows `inside`."""
    z = in_log2(z, KIND)
    if KIND == JSD:
        z = tl.where(real[None, :], z, -float("inf"))
        p, lse, normal = clean_softmax(z, PRECISE)
        return Clean(z, p, lse, normal)
    else:
        return Clean(z, z, tl.zeros(inside.shape, tl.float32), inside)


@triton.jit
def divergence_of_pair(
    step,  # [BLOCK_R, BLOCK_C] w - z in log2 units, 0 outside the classes
    clean,
    kept,  # [BLOCK_R] rows whose pair counts
    real,  # [BLOCK_C]
    READ: tl.constexpr,
    source,
    KIND: tl.constexpr,
    WHOLE: tl.constexpr,  # leave nothing of the values to `finish_rows`
    PRECISE: tl.constexpr,
):
    """Value and gradients of each row's pair.

    READ(source, CAREFUL) gives the step and w in log2 units, with digits of their own, and which
    rows have a step whose powers tell enough. CAREFUL, for the JSD, w is less the clean row's lse
    and -inf outside the classes.
    """
    if KIND == JSD:
        return jsd_of_pair(step, clean, kept, READ, source, WHOLE, PRECISE)
    else:
        nothing = clean.lse
        if KIND == BINARY_JSD:
            # made and read again for each pair, to spare the registers
            on, off, excess = logistic(clean.z, PRECISE)
            step, w, _ = READ(source, False)
            terms, u, v = binary_terms(step, on, off, excess, clean.z, w, PRECISE)
            value = not_below_0(tl.sum(tl.where(real[None, :], terms, 0.0), 1))
        else:
            u = squared_error(step, step + clean.z)
            v = -u
            value = 0.25 * tl.sum(u * u, 1)
        return Pair(value, u, v, nothing, nothing, nothing)


@triton.jit
def finish_rows(total, clean, KIND: tl.constexpr, PRECISE: tl.constexpr):
    """v from a row's sum of `to_clean`, and what the values lack where it is due."""
    if KIND == JSD:
        mean = tl.sum(clean.p * total, 1)
        return clean.p * (total - mean[:, None]), mean
    elif KIND == BINARY_JSD:
        on, off, _ = logistic(clean.z, PRECISE)
        return on * off * total, clean.lse
    else:
        return total, clean.lse


@triton.jit
def plain_gradient(d, p, kl, PRECISE: tl.constexpr):
    """u of a JSD from d = log2(q/p), where no row is near the other or underflow."""
    ratio = exp2(d, PRECISE)
    g = log2(tl.fma(ratio, 0.5, 0.5), PRECISE)
    return p * ratio * (d - kl[:, None] - g)


@triton.jit
def gradient_of_pair(
    step,  # [BLOCK_R, BLOCK_C] w - z in log2 units
    clean,  # without lse
    shift,  # [BLOCK_R] of a JSD: these two as `divergence_of_pair` left them
    kl,
    inside,  # [BLOCK_R]
    READ: tl.constexpr,
    source,
    KIND: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """u of each row's pair, on any part of the classes; READ as above."""
    if KIND == JSD:
        d = step - shift[:, None]
        u = plain_gradient(d, clean.p, kl, PRECISE)
        plain = clean.normal & (kl > NEAR)
        if tl.min((plain | ~inside).to(tl.int32), 0) == 0:
            _, w, _ = READ(source, True)
            log2_qm, log2_pm = log_ratios(d, PRECISE)
            q = exp2(w - shift[:, None], PRECISE) + 0.0 * step
            u = q * (log2_qm - kl[:, None])
        return u
    elif KIND == BINARY_JSD:
        _, w, _ = READ(source, False)
        on, off, excess = logistic(clean.z, PRECISE)
        _, u, _ = binary_terms(step, on, off, excess, clean.z, w, PRECISE)
        return u
    else:
        return squared_error(step, step)
