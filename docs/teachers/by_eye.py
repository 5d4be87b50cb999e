"""Problems of places and programs: masks to shade, where rows stand, heads, tiles, caches, and a mistake to find."""

from __future__ import annotations

from collections import Counter

import numpy as np
from exact import exact, fractions, said
from paper import LEFT, WIDTH, Answer, Paper

from polyattn import attention, masks
from polyattn.caches import CircularCache, KVCache, LatentCache
from polyattn.parity import grade

__all__ = ["caches", "heads", "masks_to_shade", "mistakes", "places", "tiles"]


def seen(mask: masks.Mask, queries: int, keys: int, **where: int) -> list[list[bool]]:
    """Which query may look at which key."""
    return [
        [letter == "#" for letter in line.split()] for line in mask.show(queries, keys, **where).splitlines()
    ]


def masks_to_shade(paper: Paper) -> None:
    """Masks."""
    paper.paragraph(
        "Shade what a query may look at: queries downwards, keys to the right, both from 0. How many pairs are there?"
    )
    ids = np.array([0, 0, 0, 1, 1, 2])
    shown = {
        "causal": masks.causal(),
        "the last 3 keys": masks.sliding_window(3),
        "1 neighbour to either side": masks.window(1, 1),
        "prefix of 3, then causal": masks.prefix(3) | masks.causal(),
        "documents 000112, causal": masks.segments(ids) & masks.causal(),
        "causal blocks of 2": masks.block_causal(2),
    }
    side, across, down = 5.6, 58.0, 52.0
    top = paper.y + 8
    for n, (name, mask) in enumerate(shown.items()):
        x, y = LEFT + 6 + n % 3 * across, top + n // 3 * down
        rows = seen(mask, 6, 6)
        paper.words(x, y - 5, name, size=11)
        paper.squares(x, y, rows, side)
        paper.words(x, y + 6 * side + 6.2, "pairs:", size=10)
        paper.cell(x + 12, y + 6 * side + 1.5, 16, 7, Answer(str(sum(map(sum, rows)))))
    paper.y = top + down + 6 * side + 11


def places(paper: Paper) -> None:
    """Two queries beside four keys."""
    paper.paragraph(
        "Two queries meet four keys, causally. That does not say yet where the queries stand. Left the first query stands at key 0, "
        "right the last query at the last key. Shade both. All scores are 0 and the values are 8, 4, 0, 12: what are the outputs?"
    )
    value = np.array([8.0, 4, 0, 12])[:, None]
    top, side = paper.y + 9, 9.0
    for x, offset, name in ((LEFT + 8, 0, "query 0 at key 0"), (LEFT + 95, "end", "last query at last key")):
        shift = 0 if offset == 0 else 2
        paper.words(x, top - 6, name, size=11)
        paper.squares(x, top, seen(masks.causal(), 2, 4, query_offset=shift), side)
        out = attention(np.zeros((2, 1)), np.zeros((4, 1)), value, is_causal=True, query_offset=offset)
        paper.words(x + 4 * side + 12, top - 2, "output", size=10, ha="center")
        for i, number in enumerate(fractions(out)):
            paper.cell(x + 4 * side + 4, top + i * side, 16, side, Answer(said(number)))
    paper.y = top + 2 * side + 7
    paper.paragraph("Which of the two is right where a model decodes two tokens beside a cache of two?")
    old, new = np.zeros((4, 1)), attention(np.zeros((4, 1)), np.zeros((4, 1)), value, is_causal=True)
    alike = [
        name
        for name, offset in (("the first", 0), ("the second", "end"))
        if np.array_equal(attention(old[2:], old, value, is_causal=True, query_offset=offset), new[2:])
    ]
    paper.room(
        1,
        f"{' and '.join(alike).capitalize()}: its outputs are the last two rows of all four queries at once.",
    )


def heads(paper: Paper) -> None:
    """Which head reads which."""
    paper.paragraph(
        "Eight query heads share fewer heads of keys and values. Write down which of them each query head reads; the last row is that of "
        "a program that repeats keys and values with np.tile where np.repeat was meant."
    )

    def read(kv_heads: int, tiled: bool = False) -> list[str | Answer]:
        value = np.arange(float(kv_heads))[:, None, None]
        value = np.tile(value, (8 // kv_heads, 1, 1)) if tiled else value
        out = attention(np.zeros((8, 1, 1)), np.zeros((len(value), 1, 1)), value)  # one key gives its value
        return [Answer(said(number)) for number in fractions(out)]

    paper.table(
        [
            ["query head", *map(str, range(8))],
            *([f"{n} kv head{'s' * (n > 1)}", *read(n)] for n in (4, 2, 1)),
            ["4, by np.tile", *read(4, tiled=True)],
        ],
        [34] + [16] * 8,
        high=7.5,
    )


def tiles(paper: Paper) -> None:
    """What of a score matrix need not be computed."""
    paper.paragraph(
        "A kernel cuts the scores of 8 queries and 8 keys into tiles of 2 x 2. A tile is full if everything in it may be seen, empty if "
        "nothing, else partial. Mark them F, E and P. How many of 16 tiles are computed, and in how many of these are positions compared?"
    )
    letters = {masks.FULL: "F", masks.EMPTY: "E", masks.PARTIAL: "P"}
    top, side = paper.y + 6, 9.0
    for n, (name, mask) in enumerate(
        (("causal", masks.causal()), ("the last 3 keys", masks.sliding_window(3)))
    ):
        x, kinds = LEFT + 4 + 86 * n, mask.tiles(8, 8, (2, 2))
        paper.words(x, top - 2.5, name, size=11)
        for i, row in enumerate(kinds):
            for j, kind in enumerate(row):
                paper.cell(x + j * side, top + i * side, side, side, Answer(letters[kind]))
        count = Counter(kind for row in kinds for kind in row)
        for i, (word, found) in enumerate(
            (("computed", 16 - count[masks.EMPTY]), ("compared", count[masks.PARTIAL]))
        ):
            paper.words(x + 4 * side + 5, top + 7 + 14 * i, word, size=10)
            paper.cell(x + 4 * side + 5, top + 9 + 14 * i, 18, 7.5, Answer(str(found)))
    paper.y = top + 4 * side + 3


def caches(paper: Paper) -> None:
    """What decoding keeps."""
    paper.paragraph(
        "A model of 32 layers has 32 query heads of width 128 and keeps keys and values in two bytes a number. How much does a layer keep for "
        "a token, and how much do all layers keep for a text of 4096 tokens? 1 KiB = 1024 bytes, 1 MiB = 1024 KiB."
    )
    like, layers, length = np.zeros((), np.float16), 32, 4096
    kept = {
        "32 kv heads": KVCache.empty(1, 32, length, 128, like=like),
        "8 kv heads": KVCache.empty(1, 8, length, 128, like=like),
        "1 kv head": KVCache.empty(1, 1, length, 128, like=like),
        "8 kv heads, the last 1024 tokens": CircularCache.empty(1, 8, 1024, 128, like=like),
        "a latent of 512 + 64, for both": LatentCache.empty(1, length, 512, 64, like=like),
    }
    rows: list[list[str | Answer]] = [["kept", "KiB for a token and layer", "MiB for the text"]]
    for name, cache in kept.items():
        own = cache.key.nbytes + (
            0 if isinstance(cache, LatentCache) else cache.value.nbytes
        )  # which is a part of its key
        slots = cache.key.shape[-2]
        found = (exact(own / slots / 1024), exact(layers * own / 1024**2))
        rows.append([name, *(Answer(said(number)) for number in found)])
    paper.table(rows, [62, 50, 50])
    paper.paragraph("How many tokens does 1 GiB hold?")
    both = ("8 kv heads", "1 kv head")
    bytes_of_a_token = [layers * (kept[name].key.nbytes + kept[name].value.nbytes) // length for name in both]
    paper.table([both, [Answer(str(2**30 // own)) for own in bytes_of_a_token]], [50, 50])


PROGRAMS = (
    """
def attention(query, key, value):
    scores = query @ key.T / np.sqrt(len(key))
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ value
""",
    """
def attention(query, key, value):
    scores = query @ key.T / np.sqrt(query.shape[-1])
    e = np.exp(scores - scores.max())
    return e / e.sum(axis=0) @ value
""",
    """
def attention(query, key, value, mask=None):
    scores = query @ key.T / np.sqrt(query.shape[-1])
    if mask is not None:
        scores = np.where(mask, scores, 1e-10)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) @ value
""",
    """
def attention(query, key, value):
    scores = query @ key.T / np.sqrt(query.shape[-1])
    e = np.exp(scores)
    return e / e.sum(-1, keepdims=True) @ value
""",
)


def mistakes(paper: Paper) -> None:
    """One mistake in each."""
    paper.paragraph(
        "Each of these functions has one mistake, raises nothing, and gives a result of the right shape. Mark the line. Which rule does it "
        "break, and what does it do instead? (query has shape (L, D), key (S, D), value (S, E); np is NumPy, in float32.)"
    )
    for text in PROGRAMS:
        rule, what = found_in(text)
        paper.code(text, LEFT, WIDTH)
        paper.y -= 5.5  # the lines follow the program closely
        paper.room(2, f"{rule}: {what}")
        paper.y -= 2.5


def found_in(text: str) -> tuple[str, str]:
    """The first rule that a program breaks, and what `polyattn grade` says of the mistake."""
    namespace: dict[str, object] = {"np": np}
    exec(text, namespace)
    with np.errstate(all="ignore"):
        broken = grade(namespace["attention"]).broken[0]  # type: ignore[arg-type]
    return broken.name, broken.mistake or broken.usual
