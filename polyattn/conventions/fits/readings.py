"""What a number may be: the constants that programs of attention hold, and their words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from polyattn.conventions.call import Call

__all__ = ["factor_readings", "scale_readings", "stated_scale", "width_readings"]

FACTORS = (2, 4, 8, 16, 32, 40, 64, 128)  # by which YaRN lengthens texts
LENGTHS = tuple(2**i for i in range(7, 18))  # of the texts that models were trained on
WIDEST = 2**14  # widths n whose 1/sqrt(n) is looked for


def stated_scale(scale: float) -> str:
    """The scale that was asked for, as it is written.

    >>> stated_scale(0.125), stated_scale(0.3)
    ('1/sqrt(64)', '0.3')
    """
    n = 1.0 / scale**2 if scale > 0 else 0.0
    return f"1/sqrt({round(n)})" if n > 1 and abs(n - round(n)) < 1e-9 * n else f"{scale:.4g}"


def scale_readings(call: Call) -> Iterator[tuple[float, str]]:
    """Scales instead of that of the call, but those of a family."""
    width, keys = call.q.shape[3], call.k.shape[2]
    instead = f"instead of {stated_scale(call.scale)}"
    yield 1.0, f"1 {instead}: scores not divided"
    for n, what in ((width, "head width"), (call.embed_dim, "model width"), (keys, "number of keys")):
        if n > 1:
            yield n**-0.5, f"1/sqrt({n}) {instead}: {what}"
            yield 1 / n, f"1/{n} {instead}: {what} without a root"
            yield n**0.5, f"sqrt({n}) {instead}: {what}, multiplied"
            yield (
                n**-0.25,
                f"{n}^(-1/4) {instead}: {what}, the root taken twice or applied to one operand alone",
            )
            yield n**-1.5, f"{n}^(-3/2) {instead}: {what}"


def factor_readings(call: Call) -> Iterator[tuple[float, str]]:
    """Factors on the scale of a call."""
    keys = call.k.shape[2]
    yield call.scale, f"the scale {stated_scale(call.scale)} applied twice"
    for x, words in (
        (math.log(2), "ln 2"),
        (1 / math.log(2), "log2(e)"),
        (math.sqrt(2), "sqrt(2)"),
        (-1.0, "-1"),
    ):
        yield x, words
        if x > 0:
            yield 1 / x, f"1 / {words}"
    for mscale, said in ((1.0, "0.1"), (0.707, "0.0707")):
        for f in FACTORS:
            m = 0.1 * mscale * math.log(f) + 1
            words = f"of YaRN for factor {f}, ({said} ln {f} + 1)"
            yield m**2, f"m^2 {words}^2"
            yield m**-2, f"1/m^2 {words}^-2"
            yield m, f"m {words}, applied once"
    if keys > 1:
        yield math.log(keys), f"ln {keys}, the logarithm of the number of keys"
        yield math.log2(keys), f"log2 {keys}, the logarithm of the number of keys"
        for n in LENGTHS:
            if n != keys:
                yield (
                    math.log(keys) / math.log(n),
                    f"ln {keys} / ln {n}, the logarithm of the length over that of training",
                )


def width_readings(call: Call) -> Iterator[tuple[float, str]]:
    """1/sqrt(n) for every n: a family."""
    instead = f"instead of {stated_scale(call.scale)}"
    for n in range(2, WIDEST + 1):
        yield n**-0.5, f"1/sqrt({n}) {instead}"
