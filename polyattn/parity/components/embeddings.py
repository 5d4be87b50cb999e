"""Why an embedding is wrong: its factor, its rows, its columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from polyattn.parity.components.linears import eight_bits, matched_columns
from polyattn.parity.components.orders import say_order
from polyattn.parity.components.relation import relation
from polyattn.parity.components.trial import Candidate, Case, factor_of
from polyattn.truth.measure import round_to
from polyattn.truth.spec import Floats

__all__ = ["ids_first", "tiers"]

FARTHEST = 4  # rows that ids may be off


def tiers(case: Case) -> Iterator[Iterator[Candidate]]:
    """Rows and factors; the table of the port; its columns and precision; at last a factor that fits."""
    table = case.facts.arrays.get("weight")
    if table is None or table.ndim != 2 or table.shape[1:] != case.expected.shape[-1:]:
        return
    t = table.astype(np.float64)
    scale = float(case.facts.numbers.get("scale", 1.0))
    offset = int(case.facts.numbers.get("offset", 0))
    ids = case.x
    inside = ids.dtype.kind in "iu" and ids.shape == case.expected.shape[:-1] and _inside(ids, t, offset)
    if not inside or not case.reproduces(_rows(t, scale, offset)(case)):
        return
    yield _rows_and_factors(case, t, scale, offset)
    yield _tables(case, t, scale, offset)
    yield _fitted(case, t, scale, offset)


def ids_first(case: Case) -> Case:
    """The case with the ids in front that give what was expected: positions may come behind a mask, one row for all."""
    table = case.facts.arrays.get("weight")
    if table is None or table.ndim != 2 or table.shape[1:] != case.expected.shape[-1:]:
        return case
    offset, scale = int(case.facts.numbers.get("offset", 0)), float(case.facts.numbers.get("scale", 1.0))
    lead = case.expected.shape[:-1]
    for x in case.inputs:
        fits = x.dtype.kind in "iu" and x.shape == lead[len(lead) - x.ndim :]
        one_row = (
            x.dtype.kind in "iu" and x.ndim == len(lead) and x.shape == (*(1 for _ in lead[:-1]), lead[-1])
        )
        if (fits or one_row) and _inside(x, table, offset):
            ids = np.broadcast_to(x, lead)
            if case.reproduces(scale * table[ids + offset].astype(np.float64)):
                return replace(case, inputs=(ids,), cuttable=True)
    return case


def _inside(ids: Floats, t: Floats, offset: int) -> bool:
    """Whether all ids are rows of the table."""
    return bool(ids.size and (ids + offset >= 0).all() and (ids + offset < len(t)).all())


def _rows(
    t: Floats, scale: float, offset: int, held: Callable[[Floats], Floats] = lambda rows: rows
) -> Callable[[Case], Floats]:
    """The rows of the ids, times a factor. held: how a table holds its rows."""

    def predict(case: Case) -> Floats:
        at = case.x + offset
        rows = scale * held(t[np.clip(at, 0, len(t) - 1)])
        inside = (at >= 0) & (at < len(t))
        # What a library reads outside of a table is its own affair.
        return rows if 2 * inside.sum() < inside.size else np.where(inside[..., None], rows, case.seen)

    return predict


def _rows_and_factors(case: Case, t: Floats, scale: float, offset: int) -> Iterator[Candidate]:
    width = t.shape[1]
    factors = {
        f"sqrt({width}) (the width)": np.sqrt(width),
        f"1/sqrt({width}) (the width)": width**-0.5,
        f"{width} (the width)": float(width),
    }
    if scale != 1.0:
        yield Candidate(f"factor {scale:.6g} of the embedding missing", _rows(t, 1.0, offset))
        yield Candidate(f"factor {scale:.6g} of the embedding applied twice", _rows(t, scale * scale, offset))
    for said, factor in factors.items():
        what = "multiplied by" if scale == 1.0 else f"besides its factor {scale:.6g} multiplied by"
        yield Candidate(f"embedding {what} {said}", _rows(t, scale * factor, offset))
    pad = case.facts.numbers.get("padding_idx")
    steps = [n for k in range(1, FARTHEST + 1) for n in (k, -k)]
    if isinstance(pad, int):
        steps += [pad + 1, -pad - 1]
    for step in dict.fromkeys(steps):
        why = f" (the offset {offset} of the table left out)" if offset and step == -offset else ""
        why = why or (
            " (padding_idx + 1)" if isinstance(pad, int) and pad > 0 and abs(step) == pad + 1 else ""
        )
        said = f"row of id {'+' if step > 0 else '-'} {abs(step)} read, not that of id{why}"
        yield Candidate(said, _rows(t, scale, offset + step))
    if case.x.ndim > 1:
        yield Candidate(
            "positions counted from 0 in every row, not the ids that came", _counted(t, scale, offset, 0)
        )
        yield Candidate(
            "positions counted from 1 in every row, not the ids that came", _counted(t, scale, offset, 1)
        )
    if isinstance(pad, int):
        yield Candidate(
            f"padding row {pad} is 0, which the reference does not have so", _padded(t, scale, offset, pad)
        )


def _counted(t: Floats, scale: float, offset: int, first: int) -> Callable[[Case], Floats]:
    def predict(case: Case) -> Floats:
        at = np.broadcast_to(np.arange(case.x.shape[-1]) + first + offset, case.x.shape)
        return scale * t[np.clip(at, 0, len(t) - 1)]

    return predict


def _padded(t: Floats, scale: float, offset: int, pad: int) -> Callable[[Case], Floats]:
    return lambda case: np.where((case.x == pad)[..., None], 0.0, _rows(t, scale, offset)(case))


def _tables(case: Case, t: Floats, scale: float, offset: int) -> Iterator[Candidate]:
    for name, other in case.facts.children("other").items():
        if other.shape[1:] == t.shape[1:] and len(other) >= len(t):
            yield Candidate(f"holds the table of {name}", _rows(other.astype(np.float64), scale, offset))
    if (
        case.port is not None
        and (theirs := case.port.arrays.get("weight")) is not None
        and theirs.shape == t.shape
    ):
        said = relation(case.facts.arrays["weight"], theirs)
        if said is not None:
            yield Candidate(
                _padding(case, t, theirs) or f"table of the port {said}",
                _rows(theirs.astype(np.float64), scale, offset),
            )
    if t.shape[0] == t.shape[1]:
        yield Candidate("table transposed", _rows(t.T, scale, offset))
    for low in ("bfloat16", "float16"):
        rounded = partial(round_to, dtype=low)
        yield Candidate(f"table rounded to {low}", _rows(t, scale, offset, rounded))
        if scale != 1.0:
            held = float(round_to(np.array([scale]), low)[0])
            yield Candidate(f"factor rounded to {low}, {held:.6g}", _rows(t, held, offset))
    step = float(np.abs(t).max(initial=0.0)) / 127
    whole = Candidate(
        "table rounded to 8 bits, with one scale for the whole table",
        _rows(t, scale, offset, lambda rows: np.rint(rows / (step or 1.0)) * step),
    )
    by_row = partial(eight_bits, axis=-1)
    each = Candidate("table rounded to 8 bits, with one scale for each row", _rows(t, scale, offset, by_row))
    yield from (whole, each)


def _padding(case: Case, t: Floats, theirs: Floats) -> str | None:
    """That only the row of the padding differs."""
    rows = np.flatnonzero((t != theirs).any(1))
    told = case.facts.numbers.get("padding_idx")
    if len(rows) != 1 or (isinstance(told, int) and rows[0] != told and told >= 0):
        return None
    row = int(rows[0])
    if not t[row].any():
        return f"row {row} of the table is not 0, as padding is in the reference"
    return (
        f"row {row} of the table is 0, as padding is, and in the reference it is not"
        if not theirs[row].any()
        else None
    )


def _fitted(case: Case, t: Floats, scale: float, offset: int) -> Iterator[Candidate]:
    if (columns := matched_columns(case)) is not None:
        said = (
            say_order(columns)
            .replace("rotary order", "the order")
            .replace(", in heads of " + str(len(columns)), "")
        )
        yield Candidate(
            f"columns of the table {said} (sine and cosine?)", _rows(t[:, columns], scale, offset)
        )
    wrong = np.unique(case.x[(case.seen != case.expected).any(-1)])
    right = np.unique(case.x[(case.seen == case.expected).all(-1)])
    if len(wrong) == 1 and len(right) > 1 and not np.isin(wrong, right).any():
        row = int(wrong[0])
        zero = not t[np.clip(row + offset, 0, len(t) - 1)].any()
        given = case.seen[case.x == row][0]
        said = (
            f"row {row} is not 0, as padding is in the reference" if zero else f"row {row} alone is another"
        )
        changed = t.copy()
        changed[row + offset] = given / scale
        yield Candidate(said, _rows(changed, scale, offset))
    if (factor := factor_of(case)) is not None:
        yield Candidate(f"embedding multiplied by {factor:.6g}", _rows(t, scale * factor, offset))
