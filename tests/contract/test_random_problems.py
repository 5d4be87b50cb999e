"""Random problems on every library, against the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyattn import attention, masks, mods
from polyattn.parity.case import Case, Draw, Later, Sample
from polyattn.testing import Bench, judge
from polyattn.truth.spec import Floats, Spec

SIZES = st.sampled_from([0, 1, 2, 3, 5, 8])


@st.composite
def samples(draw: st.DrawFn, dtypes: tuple[str, ...]) -> tuple[str, Sample]:
    dtype = draw(st.sampled_from(dtypes))
    d = Draw(np.random.default_rng(draw(st.integers(0, 2**32))), dtype)
    batch, rows, keys, out_width = draw(SIZES), draw(SIZES), draw(SIZES), draw(SIZES)
    width = draw(st.sampled_from([1, 2, 3, 5, 8]))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    heads = kv_heads * group
    arrays = d.qkv(
        batch, heads, kv_heads, rows, keys, width, out_width, draw(st.sampled_from([1.0, 4.0, 16.0]))
    )
    arrays = {name: strided(draw, x) for name, x in arrays.items()}
    shape = (batch, heads, rows, keys)
    options: dict[str, Any] = {}
    more: dict[str, Any] = {}
    offset = draw(st.integers(-6, 6))
    allowed = np.ones((1, 1, 1, 1), bool)
    q, kv = np.arange(rows)[:, None] + offset, np.arange(keys)
    terms: list[Any] = []
    if draw(st.booleans()):
        left, right = draw(st.one_of(st.none(), st.integers(0, 4))), draw(st.integers(0, 4))
        terms.append(masks.window(left, right))
        allowed = allowed & (kv - q <= right) & ((kv - q >= -left) if left is not None else True)
    if draw(st.booleans()):
        n = d.rng.integers(0, keys + 1, size=batch).astype(np.int32)
        terms.append(Later(lambda a, n=n: masks.key_lengths(a(n))))
        allowed = allowed & (kv < n[:, None, None, None])
    if draw(st.booleans()):
        given_mask = d.rng.random(broadcastable(draw, shape)) < 0.7
        terms.append(Later(lambda a, m=given_mask: masks.from_array(a(m))))
        allowed = allowed & given_mask
    if terms:
        options["mask"] = Later(lambda a: join([t.make(a) if isinstance(t, Later) else t for t in terms]))
    options["query_offset"] = offset
    if draw(st.booleans()):
        more["bias"] = options["bias"] = d.normal(*broadcastable(draw, shape))
    if draw(st.booleans()):
        more["sinks"] = options["sinks"] = d.normal(heads)
    if draw(st.booleans()):
        more["softcap"] = 3.0
        options["score_mod"] = mods.softcap(3.0)
    if draw(st.booleans()):
        more["scale"] = options["scale"] = draw(st.sampled_from([0.0, 0.25, 1.0, -0.5]))
    spec = Spec(**arrays, allowed=allowed, **more)
    return dtype, Sample(spec, options)


def join(terms: list[Any]) -> Any:
    mask = terms[0]
    for term in terms[1:]:
        mask = mask & term
    return mask


def broadcastable(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n if draw(st.booleans()) else 1 for n in shape)


def strided(draw: st.DrawFn, x: Floats) -> Floats:
    """The same values behind other strides."""
    how = draw(st.sampled_from(["plain", "transposed", "sliced", "negative", "fortran"]))
    if how == "transposed":
        return x.swapaxes(1, 2).copy().swapaxes(1, 2)
    if how == "sliced":
        wide = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan)
        wide[..., ::2] = x
        return wide[..., ::2]
    if how == "negative":
        return np.flip(np.flip(x, 2).copy(), 2)
    return np.asfortranarray(x) if how == "fortran" else x


@pytest.mark.slow
@settings(
    max_examples=10,  # on each library; the fuzz of all implementations against each other draws hundreds
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)
@given(data=st.data())
def test_random_problems_agree_with_the_truth(eager: Bench, data: st.DataObject) -> None:
    dtype, sample = data.draw(samples(eager.dtypes))
    case = Case("random", "all", lambda d: sample)
    outcome = judge(eager, case, sample, dtype, attention)
    assert outcome.error is None, outcome
    assert outcome.eta <= 4, outcome
