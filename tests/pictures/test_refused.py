"""What cannot be drawn is answered in a sentence: which function, what was expected, what came, what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax

from polyattn import masks, pictures
from polyattn.rotary import Rotary

pytest.importorskip("matplotlib")
W = np.full((2, 3), 0.5)
ROW = np.zeros(4)

REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a list": (lambda: pictures.weights([[1.0]]), TypeError, "polyattn.pictures.weights: expected weights to be an array of an array API library (NumPy, JAX, PyTorch, ...), of shape (L, S), got list; convert it, for example with numpy.asarray"),
    "a batch": (lambda: pictures.weights(np.ones((1, 2, 3, 3))), ValueError, "polyattn.pictures.weights: expected weights of shape (L, S), got (1, 2, 3, 3); index batch item and head, as weights[0, 0], or draw all with heads"),
    "complex numbers": (lambda: pictures.weights(np.ones((2, 2), complex)), TypeError, "expected weights of real numbers, got complex128; draw its absolute value"),
    "nothing": (lambda: pictures.weights(np.ones((0, 2))), ValueError, "expected weights with something to draw, got an array of shape (0, 2); leave the call out"),
    "a text for tokens": (lambda: pictures.weights(W, "ab"), TypeError, "expected queries to be a sequence of texts, got 'ab'; write queries=list(text) for its letters, or text.split()"),
    "too few tokens": (lambda: pictures.weights(W, keys=["a"]), ValueError, "expected keys to have a text for each of the 3 keys, got 1; leave out none, not even those of padding"),
    "numbers for tokens": (lambda: pictures.weights(W, [1, 2]), TypeError, "expected queries to be a sequence of texts, got 1 in it; write list(map(str, queries))"),
    "a number for a title": (lambda: pictures.weights(W, title=3), TypeError, "expected title to be a text, got 3; write title=str(...)"),
    "a number for a label": (lambda: pictures.weights(W, colours=3), TypeError, "polyattn.pictures.weights: expected colours to be a text, got 3; write colours=str(...)"),
    "no label": (lambda: pictures.weights(W, rows=None), TypeError, "polyattn.pictures.weights: expected rows to be a text, got None; write rows=str(...)"),
    "an unknown argument": (lambda: pictures.weights(W, cmap="jet"), TypeError, "polyattn.pictures.weights: expected"),
    "one head": (lambda: pictures.heads(W), ValueError, "polyattn.pictures.heads: expected weights of shape (H, L, S), got (2, 3); add the axes"),
    "no column": (lambda: pictures.heads(W[None], columns=0), ValueError, "expected columns >= 1, got 0"),
    "a float mask": (lambda: pictures.mask(W), TypeError, "polyattn.pictures.mask: expected a bool array, True = may attend, got float64; write mask == 0 for a bias of 0 and -inf, or mask != 0 for ones and zeros"),
    "a function for a mask": (lambda: pictures.mask(lambda b, h, q, kv: q >= kv, 4), TypeError, "expected a mask of polyattn.masks or a bool array, got"),
    "a mask of any size": (lambda: pictures.mask(masks.causal()), ValueError, "expected queries too, as this mask is of any size, got None; say how many there are, or their tokens"),
    "a tile that is a number": (lambda: pictures.mask(masks.causal(), 4, tile=2), TypeError, "expected tile to be a number of rows and one of keys, got 2; write (64, 64)"),
    "an image of other numbers": (lambda: pictures.over_image(np.full((4, 4), -2.0), W), ValueError, "expected numbers of image from 0 to 1, got -2 to -2; undo the normalisation of the model, image * std + mean"),
    "colours first": (lambda: pictures.over_image(np.ones((3, 8, 8)), W), ValueError, "expected image of shape (H, W) or (H, W, 3), got (3, 8, 8); colours are the last axis, numpy.moveaxis(image, 0, -1) brings them there"),
    "a class token": (lambda: pictures.over_image(np.ones((4, 4)), np.ones(5), grid=(2, 2)), ValueError, "expected 4 weights for a grid of 2 x 2 patches, got shape (5,); leave out those of tokens that are no patch, as weights[1:] behind a class token"),
    "no grid": (lambda: pictures.over_image(np.ones((4, 4)), np.ones(4)), ValueError, "expected grid too, as weights have one axis, got (4,); write grid=(rows, cols)"),
    "negative areas": (lambda: pictures.alignment(-W, list("abc"), list("ab")), ValueError, "expected weights of at least 0, which areas can show, got -0.5 among them; polyattn.pictures.weights draws others"),
    "source and target exchanged": (lambda: pictures.alignment(W, list("ab"), list("abc")), ValueError, "expected target to have a text for each of the 2 rows, got 3"),
    "a matrix of scores": (lambda: pictures.online_softmax(W), ValueError, "polyattn.pictures.online_softmax: expected scores of shape (S,), got (2, 3); index the batch item"),
    "a score of NaN": (lambda: pictures.online_softmax(ROW * np.nan), ValueError, "expected scores that are finite, or -inf where a key is hidden, got NaN among them; the average of such a row is NaN"),
    "too many tiles": (lambda: pictures.online_softmax(np.zeros(90)), ValueError, "expected at most 96 keys in at most 24 tiles, got 90 in 90; more cannot be seen, take a part of the row or larger tiles"),
    "values of other keys": (lambda: pictures.online_softmax_animation(ROW, W), ValueError, "polyattn.pictures.online_softmax_animation: expected values of shape (4, E), finite, a row for each score, with E <= 24, got shape (2, 3); take a part of the width, as values[:, :8]"),
    "no rotary": (lambda: pictures.rotary_angles(8, np.arange(3)), TypeError, "expected a polyattn.rotary.Rotary, got 8; write Rotary(width=64), or Rotary.from_config(config)"),
    "another width": (lambda: pictures.rotary_angles(Rotary(width=4), np.arange(3), width=8), ValueError, "expected the width of the rotary, 4, got 8; leave width out"),
    "positions of two axes": (lambda: pictures.rotary_angles(Rotary(width=4), np.zeros((2, 3), int)), ValueError, "expected positions of shape (L,), got (2, 3); write arange(8)"),
    "no head": (lambda: pictures.alibi_slopes(0), ValueError, "polyattn.pictures.alibi_slopes: expected num_heads >= 1, got 0"),
    "no device": (lambda: pictures.ring(0), ValueError, "polyattn.pictures.ring: expected devices >= 1, got 0; a ring has at least one device"),
    "lengths that fall": (lambda: pictures.over_length([2, 1], {"a": [1, 2]}, unit="s"), ValueError, "expected lengths that rise, got [2, 1]; sort them"),
    "a zero on a logarithmic axis": (lambda: pictures.over_length([1, 2], {"a": [0, 2]}, unit="s"), ValueError, "expected series['a'] above 0 and finite, as its axis is logarithmic, got [0, 2]; write None where nothing was measured"),
    "a series too short": (lambda: pictures.over_length([1, 2], {"a": [1]}, unit="s"), ValueError, "expected series['a'] to have 2 numbers, one for each length, got 1; write None where nothing was measured"),
    "a series of nothing": (lambda: pictures.over_length([1, 2], {"a": [None, None]}, unit="s"), ValueError, "expected a number in series['a'], got none; leave that name out"),
    "eight series": (lambda: pictures.over_length([1], {str(i): [1] for i in range(8)}, unit="s"), ValueError, "expected 1 to 7 series, which can be told apart, got 8; draw two figures"),
    "two shapes": (lambda: pictures.mismatch(W, W.T), ValueError, "polyattn.pictures.mismatch: expected two arrays of one shape (..., H, L, E), got (2, 3) and (3, 2); bring both into one layout, as numpy.swapaxes(x, 1, 2) does with BLHD"),
    "one name": (lambda: pictures.mismatch(W, W, names="ab"), TypeError, "expected names to be two texts, got 'ab'; write names=('mine', 'theirs')"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_drawn_is_answered_in_a_sentence(name: str) -> None:
    call, kind, said = REFUSED[name]
    with pytest.raises(kind, match=re.escape(said)):
        call()


def test_a_traced_array_has_nothing_to_draw_yet() -> None:
    with pytest.raises(TypeError, match="expected weights with values that can be read, got a traced value"):
        jax.jit(lambda x: pictures.weights(x) and x)(W)
