"""Powers of two, logarithms and reciprocals, one instruction each.

`tl.log` and `/` compile to 9-25 instructions on sm_90, and `tl.exp2`, `tl.log2` handle subnormal
numbers; the inner loops work in log2 units and call these. PRECISE takes Triton's own functions.
Worst errors, as understood from the PTX manual, not measured: `ex2.approx.ftz` 2^-22.5 relative,
`lg2.approx.ftz` 2^-22.6 absolute for arguments in (0.5, 2) and relative elsewhere,
`rcp.approx.ftz` 1 ulp.
"""

import triton
import triton.language as tl

# Inline assembly cannot be interpreted; there the functions are always precise.
INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))

LOG2E = tl.constexpr(1.44269504088896340736)
LN2 = tl.constexpr(0.69314718055994530942)
HALF_LN2 = tl.constexpr(0.34657359027997265471)


@triton.jit
def exp2(x, PRECISE: tl.constexpr):
    """2^x."""
    if PRECISE or INTERPRETED:
        return tl.exp2(x)
    return tl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def log2(x, PRECISE: tl.constexpr):
    """Logarithm to base 2; -inf for 0."""
    if PRECISE or INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise(
        "lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def reciprocal(x, PRECISE: tl.constexpr):
    """1 / x."""
    if PRECISE or INTERPRETED:
        return 1.0 / x
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def log2_of_double(x):
    """Logarithm to base 2 of a float64 that is no subnormal number, within 2^-38; -inf for 0."""
    bits = x.to(tl.int64, bitcast=True)
    m = ((bits & 0xFFFFFFFFFFFFF) | 0x3FF0000000000000).to(tl.float64, bitcast=True)
    above = m > 1.4142135
    m = tl.where(above, 0.5 * m, m)
    # 2 atanh((m - 1) / (m + 1)) / ln(2), of m from sqrt(1/2) to sqrt(2)
    u = (m - 1.0) / (m + 1.0)
    v = u * u
    series = v * 0.0 + 1.0 / 13.0
    for k in tl.static_range(6):
        series = series * v + 1.0 / (11.0 - 2.0 * k)
    exponent = (bits >> 52) - 1023 + above.to(tl.int64)
    result = u * series * (2.0 * LOG2E) + exponent.to(tl.float64)
    return tl.where(x > 0.0, result, tl.where(x == 0.0, -float("inf"), float("nan")))


@triton.jit
def log2_1p(t, PRECISE: tl.constexpr):
    """log2(1 + t) of t in [0, 1]."""
    # 2 atanh(t / (2 + t)) / ln(2). A logarithm of 1 + t would lose the digits of a small t; the
    # first term left out of the series is below 2^-26 of the sum.
    u = t * reciprocal(2.0 + t, PRECISE)
    v = u * u
    series = 1.0 / 15.0
    for k in tl.static_range(7):
        series = series * v + 1.0 / (13.0 - 2.0 * k)
    return 2.0 * LOG2E * u * series
