"""The sheet to print: every problem has its solution, and the solutions, which the library computes, are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

TEACHERS = Path(__file__).parents[2] / "docs" / "teachers"


@pytest.fixture(scope="module")
def worksheet() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TEACHERS)
        yield import_module("worksheet")


@pytest.fixture(scope="module")
def sheets(worksheet: Any) -> dict[bool, Any]:
    return {solved: worksheet.sheet(solved=solved) for solved in (False, True)}


def read(text: str) -> Fraction:
    """A number as the sheet prints it."""
    plain = text.replace("\u2212", "-")
    found = re.fullmatch(r"\$(-?)\\frac\{(\d+)\}\{(\d+)\}\$", plain)
    return Fraction(plain) if found is None else Fraction(int(found[1] + found[2]), int(found[3]))


def printed(page: Any) -> list[str]:
    return [text.get_text() for axes in page.axes for text in axes.texts]


def weights_by_hand(scores: list[int]) -> list[Fraction]:
    powers = [Fraction(2) ** s for s in scores]
    return [power / sum(powers) for power in powers]


def test_the_weights_are_those_of_exact_arithmetic(sheets: Any) -> None:
    found = [read(text) for text in sheets[True][1][0]]
    keys, values = [(0, 1), (1, 0), (2, -1), (-2, 1)], [8, 4, 16, 0]
    scores = [a + 2 * b for a, b in keys]
    weights = weights_by_hand(scores)
    rows = [x for s, w, v in zip(scores, weights, values, strict=True) for x in (s, 2**s, w, w * v)]
    out = sum(w * v for w, v in zip(weights, values, strict=True))
    assert found == [*rows, sum(2**s for s in scores), 1, out, *weights_by_hand([s + 3 for s in scores])]


def test_the_masks_are_those_of_their_words(sheets: Any) -> None:
    ids = [0, 0, 0, 1, 1, 2]
    rules = (
        lambda i, j: j <= i,
        lambda i, j: i - 3 < j <= i,
        lambda i, j: abs(i - j) <= 1,
        lambda i, j: j < 3 or j <= i,
        lambda i, j: ids[i] == ids[j] and j <= i,
        lambda i, j: j // 2 <= i // 2,
    )
    expected: list[str] = []
    for rule in rules:
        rows = ["".join("#" if rule(i, j) else "." for j in range(6)) for i in range(6)]
        expected += [*rows, str("".join(rows).count("#"))]
    assert sheets[True][1][1] == expected


def test_rows_and_heads_stand_where_they_are_said_to_stand(sheets: Any) -> None:
    values = [8, 4, 0, 12]
    expected = []
    for offset in (0, 2):
        seen = [range(row + offset + 1) for row in range(2)]
        expected += ["".join("#" if j in keys else "." for j in range(4)) for keys in seen]
        expected += [str(Fraction(sum(values[j] for j in keys), len(keys))) for keys in seen]
    *found, sentence = sheets[True][1][2]
    assert found == expected
    assert sentence.startswith("The second: ")
    groups = [str(h // (8 // n)) for n in (4, 2, 1) for h in range(8)]
    assert sheets[True][1][3] == [*groups, *(str(h % 4) for h in range(8))]


def test_three_tiles_give_what_one_softmax_gives(sheets: Any) -> None:
    found = [read(text) for text in sheets[True][1][4]]
    tiles = [((0, 0), (2, 6)), ((2, 1), (6, 8)), ((1, 1), (2, 4))]
    expected: list[Fraction] = []
    for n in range(1, 4):
        scores, values = ([x for tile in tiles[:n] for x in tile[i]] for i in (0, 1))
        top, before = max(scores), [s for tile in tiles[: n - 1] for s in tile[0]]
        terms = [Fraction(2) ** (s - top) for s in scores]
        total = sum(t * v for t, v in zip(terms, values, strict=True))
        factor = Fraction(2) ** (max(before) - top) if before else Fraction(0)
        expected += [Fraction(top), factor, sum(terms), total, total / sum(terms)]
    assert found == [*expected, expected[-1]]


def test_quarter_turns_are_those_of_complex_numbers(sheets: Any) -> None:
    found = [text.replace("\u2212", "-") for text in sheets[True][1][5]]
    q, k = (2 + 1j), (1 + 2j)

    def said(z: complex) -> str:
        return f"({z.real:.0f}, {z.imag:.0f})"

    turns = (1, 1j, -1, -1j)
    assert found[:8] == [said(x * turn) for x in (q, k) for turn in turns]
    places = [(0, 0), (2, 2), (1, 0), (3, 2), (2, 0), (3, 1)]
    products = [(q * turns[m] * (k * turns[n]).conjugate()).real for m, n in places]
    assert [int(x) for x in found[8:14]] == products
    assert len(set(products)) == len({m - n for m, n in places})
    assert found[15:] == ["(-2, 1, 3, 4)", "(-3, 2, 1, 4)"]


def test_caches_gradients_tiles_and_states_are_counted_by_hand(sheets: Any) -> None:
    kept = [read(text) for text in sheets[True][1][6]]
    each = [Fraction(2 * heads * 128 * 2, 1024) for heads in (32, 8, 1, 8)] + [Fraction(576 * 2, 1024)]
    lengths = (4096, 4096, 4096, 1024, 4096)
    totals = [own * length * 32 / 1024 for own, length in zip(each, lengths, strict=True)]
    rows = [x for pair in zip(each, totals, strict=True) for x in pair]
    assert kept == [*rows, 1024 * 4096 / totals[1], 1024 * 4096 / totals[2]]
    w, v = [Fraction(3, 4), Fraction(1, 4)], [4, 8]
    out = w[0] * v[0] + w[1] * v[1]
    slopes = [a * (b - out) for a, b in zip(w, v, strict=True)]
    _, *found, of_query = sheets[True][1][7]
    assert [read(text) for text in found] == [w[0], slopes[0], w[1], slopes[1], 1, 0, out]
    assert read(of_query.removesuffix(" $\\ln 3$")) == slopes[0]
    expected = []
    for rule in (lambda i, j: j <= i, lambda i, j: i - 3 < j <= i):
        inside = [
            [rule(2 * a + i, 2 * b + j) for i in (0, 1) for j in (0, 1)] for a in range(4) for b in range(4)
        ]
        letters = ["F" if all(seen) else "P" if any(seen) else "E" for seen in inside]
        expected += [*letters, str(16 - letters.count("E")), str(letters.count("P"))]
    assert sheets[True][1][8] == expected
    assert sheets[True][1][9][:-1] == ["(2, 0)", "2", "(2, 4)", "6", "(3, 5)", "11"]


def test_each_program_has_the_mistake_that_is_named(sheets: Any) -> None:
    found = sheets[True][1][10]
    assert [line.partition(": ")[0] for line in found] == ["scale", "convex", "mask", "large"]
    for line, word in zip(found, ("number of keys", "over the queries", "about 0", "overflows"), strict=True):
        assert word in line


def test_every_problem_has_a_solution_that_the_sheet_leaves_blank(worksheet: Any, sheets: Any) -> None:
    (blank, asked), (solved, found) = sheets[False], sheets[True]
    problems = [problem for page in worksheet.PROBLEMS for problem in page]
    assert len(problems) == len(found) == 11
    course = (TEACHERS / "index.md").read_text(encoding="utf-8").split("\n## ")[3]
    assert [problem.name for problem in problems if f"learn/{problem.chapter}.md)" not in course] == []
    assert asked == found
    assert all(found)
    for i, page in enumerate(worksheet.PROBLEMS):
        given, shown = printed(blank.pages[i]), printed(solved.pages[i])
        assert all(problem.name in given for problem in page)
        extra = list(shown)
        for text in given:
            if text in extra:
                extra.remove(text)
        first = sum(len(of_page) for of_page in worksheet.PROBLEMS[:i])
        answers = [x for of in found[first : first + len(page)] for x in of if not set(x) <= {"#", "."}]
        assert sorted(x for x in answers if len(x) < 30) == sorted(
            x for x in extra if x in set(answers) and len(x) < 30
        )
        shaded = [
            sum(
                patch.get_facecolor()[2] > 0.9 > patch.get_facecolor()[0]
                for patch in paper.pages[i].axes[0].patches
            )
            for paper in (blank, solved)
        ]
        assert shaded[0] == 0
        assert shaded[1] == "".join(x for of in found[first : first + len(page)] for x in of).count("#")


def test_nothing_lies_over_something_else_or_off_the_paper(worksheet: Any, sheets: Any) -> None:
    from matplotlib import rc_context

    overlapping = import_module("overlap").overlapping
    with rc_context(worksheet.STYLE):
        for paper, _ in sheets.values():
            for page in paper.pages:
                assert overlapping(page) == []
                wide, high = page.get_size_inches() * page.dpi
                letter = (297 - 279.4) / 2 / 297 * high  # what letter paper lacks above and below
                for text in page.axes[0].texts:
                    box = text.get_window_extent()
                    assert wide * 15 / 210 < box.x0 < box.x1 < wide * 195 / 210, text.get_text()
                    assert letter < box.y0 < box.y1 < high - letter, text.get_text()


def test_a_number_that_is_no_fraction_is_refused(worksheet: Any) -> None:
    with pytest.raises(ValueError, match=r"of at most 64, got 0\.7310585"):
        import_module("exact").exact(0.7310585)


def test_the_files_are_the_same_every_time(worksheet: Any, tmp_path: Path) -> None:
    first, second = (worksheet.write(tmp_path / name) for name in ("a", "b"))
    assert [path.name for path in first] == ["worksheet.pdf", "solutions.pdf"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert len(re.findall(rb"/Type /Page\b", a.read_bytes())) == len(worksheet.PROBLEMS)
