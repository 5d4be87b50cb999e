"""The truth of many scores is computed in tiles, and never holds an array of all of them."""

from __future__ import annotations

import tracemalloc

import numpy as np

from polyattn.truth import ACCEPTANCE, Judged, Spec, eta, truth
from polyattn.truth.tiles import LARGEST, places


def test_tiles_cover_every_score_once() -> None:
    for shape in ((2, 3, 5, 7), (1, 1, 4, 1), (2, 0, 3, 4), (1, 2, 3, 0)):
        for largest in (1, 7, 20, 50, None):
            seen = np.zeros(shape[:3], int)
            for place in places(shape, largest):
                seen[place] += 1
                if largest is not None and shape[3]:
                    rows = np.zeros(shape[:3])[place].size
                    assert rows * shape[3] <= max(largest, shape[3])
            assert (seen == 1).all()


def test_memory_does_not_grow_with_the_heads() -> None:
    def peak(heads: int) -> int:
        q, k, v, g = np.random.default_rng(0).normal(size=(4, 1, heads, 512, 8))
        tracemalloc.start()
        judged = truth(Spec(q, k, v), g, dtype="float32", visit=lambda name, stage, place: None)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most - sum(x.nbytes for one in judged.values() for x in one if isinstance(x, np.ndarray))

    tile = LARGEST // 512**2
    few, many = peak(2 * tile), peak(6 * tile)
    scores_of_the_others = 4 * tile * 512**2 * 8
    assert many - few < scores_of_the_others / 2


def test_stages_in_tiles_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 1, 3, 600, 4))
    spec = Spec(q, k, v, allowed=np.tril(np.ones((1, 1, 600, 600), bool)))
    whole: dict[str, Judged] = {}
    truth(spec, see=whole.__setitem__, dtype="float32")
    tiles = {name: np.full(x.value.shape, np.nan) for name, x in whole.items()}
    truth(
        spec, visit=lambda name, judged, place: tiles[name].__setitem__(place, judged.value), dtype="float32"
    )
    assert list(whole) == ["scores", "masked", "row maximum", "weights", "output", "lse"]
    for name, judged in whole.items():
        assert eta(tiles[name], judged, "float64") <= ACCEPTANCE, name
