"""Divergence of rows against their clean row on tiles [BLOCK_R, BLOCK_C]: what both ops share.

With d = log2(q / p), r = 2^d and g = log2((1 + r) / 2), all in log2 units:

    log2(q / m) = d - g,   log2(p / m) = -g,   2 JSD / ln 2 = sum_c q (d - g) - p g

d comes from the difference of the logits and not from two rounded logs. The plain form costs one
power and one logarithm for each class. It loses digits of the value where all ratios are near 1,
and range where a class has next to no probability: there `log_ratios` takes over, which is right
for every d and costs twice as much.
"""

import triton
import triton.language as tl

from mcr_fast.kernels.math import exp2, log2, reciprocal

JSD = tl.constexpr(0)
SQUARED_ERROR = tl.constexpr(1)
BINARY_JSD = tl.constexpr(2)
KINDS = {"jsd": 0, "mse": 1, "binary_jsd": 2}

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
    """As `plain_jsd`, for any delta; w less the clean row's normaliser, -inf outside the classes.

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
