"""Problems of one row, whose numbers can be done by hand: powers of two for powers of e, quarter turns for angles."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from exact import LN2, exact, fractions, of_row, said, said_all
from paper import Answer, Paper

from polyattn import attention_vjp
from polyattn.linear import linear_attention
from polyattn.normalizers.softmax import Partial, finish, lift, merge
from polyattn.rotary import rotate

__all__ = ["fold", "gradients", "scores", "states", "turns"]


def answers(numbers: list[Fraction]) -> list[Answer]:
    """A box for each."""
    return [Answer(text) for text in said_all(numbers)]


def pair(x: object) -> str:
    """A vector of whole numbers."""
    return f"({', '.join(said(entry) for entry in fractions(x))})"


def scores(paper: Paper) -> None:
    """Scores, weights and the sum."""
    query = [[1, 2]]
    key, value = [[0, 1], [1, 0], [2, -1], [-2, 1]], [[8], [4], [16], [0]]
    paper.paragraph(
        "A query $q = (1, 2)$ meets four keys. With the scale ln 2 the softmax is made of powers of two, "
        r"$w_j = 2^{s_j} / \sum_i 2^{s_i}$ with $s_j = q \cdot k_j$. Fill in the table."
    )
    row = of_row(query, key, value)
    names = ("scores", "powers", "weights", "parts")
    columns = zip(*(answers(row[name]) for name in names), strict=True)
    paper.table(
        [
            ["", "key $k_j$", "value $v_j$", "score $s_j$", "$2^{s_j}$", "weight $w_j$", "$w_j v_j$"],
            *([f"$j = {j}$", pair(key[j]), said(value[j][0]), *found] for j, found in enumerate(columns)),
            ["sum", "", "", "", *answers(row["sum"] + [sum(row["weights"], Fraction(0))] + row["out"])],
        ],
        [18, 28, 24, 25, 25, 25, 25],
    )
    paper.paragraph("Now every score grows by 3. The weights are:")
    more = of_row(query, key, value, bias=np.full((1, 4), 3 * LN2))
    paper.table([answers(more["weights"])], [25] * 4, head=0)


def fold(paper: Paper) -> None:
    """The softmax in three tiles."""
    tiles = [((0, 0), (2, 6)), ((2, 1), (6, 8)), ((1, 1), (2, 4))]
    paper.paragraph(
        "A row of six keys is met in three tiles, and only three numbers are kept: the largest score so far $m$, the sum "
        r"$\ell = \sum_j 2^{s_j - m}$, and $a = \sum_j 2^{s_j - m} v_j$. Where a tile raises $m$, what was kept is first "
        r"multiplied by the factor $2^{m_{\mathrm{old}} - m}$. Before the first tile $m = -\infty$, and $\ell$ and $a$ are 0."
    )
    rows: list[list[str | Answer]] = [
        ["tile", "scores", "values", "$m$", "factor", r"$\ell$", "$a$", r"$a \,/\, \ell$"]
    ]
    seen: Partial | None = None
    for number, (some, values) in enumerate(tiles, 1):
        tile = lift(np.array([some]) * LN2, np.array(values, float)[:, None])
        now = tile if seen is None else merge(seen, tile)
        factor = 0.0 if seen is None else math.exp(seen.top.item() - now.top.item())
        found = [now.top.item() / LN2, factor, now.sum.item(), now.acc.item(), finish(now).item()]
        given = [", ".join(map(str, of_tile)) for of_tile in (some, values)]
        rows.append([str(number), *given, *answers(fractions(found))])
        seen = now
    paper.table(rows, [14, 24, 24, 20, 22, 22, 22, 22], high=9)
    paper.paragraph(
        "The last $a / \\ell$ is the output of the row. Which would it be if the tiles came in reverse order?"
    )
    again: Partial | None = None
    for some, values in reversed(tiles):
        tile = lift(np.array([some]) * LN2, np.array(values, float)[:, None])
        again = tile if again is None else merge(again, tile)
    assert again is not None
    paper.table([answers(fractions(finish(again)))], [25], head=0)


def turns(paper: Paper) -> None:
    """Rotary positions by quarter turns."""
    paper.paragraph(
        "Rotary positions turn a pair of entries $(a, b)$ into $(a \\cos t - b \\sin t,\\; a \\sin t + b \\cos t)$. Here "
        "$t$ is a quarter turn for each position, so that $\\cos t$ and $\\sin t$ are 0, 1 or \u22121. Turn the query $q = (2, 1)$ "
        "and the key $k = (1, 2)$ to the positions 0 to 3:"
    )
    at = np.arange(4)
    cos, sin = (np.round(f(at * math.pi / 2))[:, None] for f in (np.cos, np.sin))  # exactly 0, 1 and -1
    query, key = (rotate(np.tile(np.array(x, float), (4, 1)), cos, sin) for x in ((2, 1), (1, 2)))
    paper.table(
        [
            ["position", *map(str, at)],
            ["$q$ turned", *(Answer(pair(x)) for x in query)],
            ["$k$ turned", *(Answer(pair(x)) for x in key)],
        ],
        [30, 30, 30, 30, 30],
    )
    paper.paragraph("Their products, the query at position $m$ and the key at $n$. What do they depend on?")
    places = [(0, 0), (2, 2), (1, 0), (3, 2), (2, 0), (3, 1)]
    products = fractions([query[m] @ key[n] for m, n in places])
    paper.table(
        [["$m, n$", *(f"{m}, {n}" for m, n in places)], ["$q \\cdot k$", *answers(products)]], [30] + [22] * 6
    )
    apart = {m - n: {products[i] for i, (a, b) in enumerate(places) if a - b == m - n} for m, n in places}
    alike = ", ".join(f"{said(*found)} for {d}" for d, found in apart.items())  # each has one number
    paper.y -= 4
    paper.room(1, f"On the difference $m - n$ alone: {alike}.")
    paper.paragraph(
        "Four entries $(1, 2, 3, 4)$ are two pairs. The first pair is turned by a quarter turn, the second not at all. What becomes "
        "of them if pairs are interleaved (entries 0 and 1, 2 and 3), and if they are half-split (0 and 2, 1 and 3)?"
    )
    four, quarter = np.array([1.0, 2, 3, 4]), (np.array([0.0, 1]), np.array([1.0, 0]))
    both = [rotate(four, *quarter, interleaved=interleaved) for interleaved in (True, False)]
    paper.table([["interleaved", "half-split"], [Answer(pair(x)) for x in both]], [50, 50])


def gradients(paper: Paper) -> None:
    """The derivative of a softmax of two keys."""
    paper.paragraph(
        "Two keys have the scores $s = (\\ln 3, 0)$ and the values $v = (4, 8)$; the exponential is that of $e$, and the loss is the "
        "output itself, $o = w_0 v_0 + w_1 v_1$. Show first that $\\partial o / \\partial s_j = w_j (v_j - o)$, then fill in."
    )
    paper.room(4, r"$\partial w_i / \partial s_j = w_i ([i = j] - w_j)$, so $\partial o / \partial s_j = \sum_i v_i w_i ([i = j] - w_j) = w_j v_j - w_j o$.")  # fmt: skip
    query, key, value = np.ones((1, 1)), np.array([[math.log(3.0)], [0.0]]), np.array([[4.0], [8.0]])
    out, pullback = attention_vjp(query, key, value, scale=1.0)
    found = pullback(np.ones_like(out))
    of_scores = fractions(found["key"])  # score j is 1 times key j
    paper.table(
        [
            ["", "$w_j = \\partial o / \\partial v_j$", "$\\partial o / \\partial s_j$"],
            *([f"$j = {j}$", *answers([w, s])] for j, (w, s) in enumerate(zip(fractions(found["value"]), of_scores, strict=True))),
            ["sum", *answers([sum(fractions(found["value"]), Fraction(0)), sum(of_scores, Fraction(0))])],
        ],
        [25, 40, 40],
    )  # fmt: skip
    paper.paragraph(
        "With the query $q = 1$, the keys $k = (\\ln 3, 0)$ and the scale 1 these are the scores $q k_j$. Then $o$, and "
        "$\\partial o / \\partial q = \\sum_j (\\partial o / \\partial s_j)\\, k_j$ as a multiple of $\\ln 3$, are:"
    )
    of_query = exact(found["query"].item() / math.log(3.0))
    cells = [Answer(said(exact(out.item()))), Answer(f"{said(of_query)} $\\ln 3$")]
    paper.table([["$o$", "$\\partial o / \\partial q$"], cells], [40, 40], high=9)


def states(paper: Paper) -> None:
    """Linear attention, a token at a time."""
    query, key, value = [[1, 0], [1, 1], [2, 1]], [[1, 0], [0, 1], [1, 1]], [[2], [4], [1]]
    paper.paragraph(
        "Without a softmax the sum over earlier tokens is one vector, the state: $S_t = S_{t-1} + k_t v_t$ and $o_t = q_t \\cdot S_t$, "
        "from $S = (0, 0)$. Fill in. How many numbers must be kept after a thousand tokens?"
    )
    q, k, v = (np.array([x], float) for x in (query, key, value))
    rows: list[list[str | Answer]] = [["token", "$q_t$", "$k_t$", "$v_t$", "$S_t$", "$o_t$"]]
    kept = 0
    for t in range(3):
        out, state = linear_attention(q[:, : t + 1], k[:, : t + 1], v[:, : t + 1], scale=1.0)
        kept = state.size
        given = [pair(query[t]), pair(key[t]), said(value[t][0])]
        rows.append([str(t), *given, Answer(pair(state)), *answers(fractions(out[0, -1]))])
    paper.table(rows, [18, 26, 26, 22, 34, 26])
    paper.room(1, f"{kept}, as after one: the state has a number for each entry of a key and of a value, {len(key[0])} times {len(value[0])}.")  # fmt: skip
