"""The pictures of docs/mechanisms/, drawn from what the library computes.

python docs/figures/mechanisms.py        # writes a file beside this one for each of PICTURES
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from drawing import Picture

from polyattn import AuxRequest, attention, mods
from polyattn.differential import differential_attention
from polyattn.layers import LatentAttention, TensorProductAttention
from polyattn.mixing import multi_token_attention, talking_heads_attention
from polyattn.selection import indexer_scores, moba_attention, pooled_keys, selected_attention, top_indices

HERE = Path(__file__).parent
WEIGHTS = AuxRequest(weights=True)


def differential() -> Picture:
    """Both halves of queries and keys share noise; the first half alone knows that row i wants key 11 - i."""
    rng, n, width = np.random.default_rng(1), 12, 8
    noisy_q, noisy_k = 1.5 * rng.normal(size=(2, n, width))
    wanted = 3.6 * np.eye(n)
    nothing = np.zeros((n, n))
    q = np.concatenate([wanted[::-1], noisy_q, nothing, noisy_q], axis=1)
    k = np.concatenate([wanted, noisy_k, nothing, noisy_k], axis=1)
    _, (first, second) = differential_attention(q, k, np.eye(n), 0.8, return_aux=WEIGHTS)
    left = differential_attention(
        q, k, np.eye(n), 0.8
    )  # the values are the unit vectors: what comes out are weights
    picture = Picture(696, 230, "Weights of two softmaxes, and the first less 0.8 of the second")
    for i, (title, weights) in enumerate(
        {
            "first softmax": first.weights,
            "second softmax": second.weights,
            "first - 0.8 second": left,
        }.items()
    ):
        picture.heat(26 + 230 * i, 28, weights, 15, title=title, most=1)
    return picture


def forgetting() -> Picture:
    """Gates of 0.97, but token 6 of 14 closes."""
    n = 14
    q, k = np.random.default_rng(3).normal(size=(2, 1, n, 8))
    gates = np.where(np.arange(n) == 6, 0.05, 0.97)
    mod = mods.forgetting(np.log(gates)[None])
    rows, keys = np.arange(n)[:, None], np.arange(n)[None, :]
    bias = np.where(
        keys <= rows, mod(np.zeros((1, n, n)), np.array(0), np.array([[[0]]]), rows, keys)[0], np.nan
    )
    plain, faded = (
        attention(q, k, k, score_mod=m, is_causal=True, return_aux=WEIGHTS)[1].weights[0] for m in (None, mod)
    )
    picture = Picture(696, 230, "Weights without gates, the sums of log f, and weights with them")
    picture.heat(26, 28, plain, 13, title="without gates", most=1)
    picture.heat(256, 28, bias, 13, title=f"sum of log f: 0 to {np.nanmin(bias):.1f}")
    picture.heat(486, 28, faded, 13, title="with gates", most=1)
    return picture


def latent() -> Picture:
    """At the sizes of DeepSeek-V2: 128 heads, R = 512, P = 64, N = E = 128."""
    heads, rank, plain, shared = 128, 512, 128, 64
    layer = LatentAttention(
        5120,
        heads,
        kv_lora_rank=rank,
        qk_nope_head_dim=plain,
        qk_rope_head_dim=shared,
        v_head_dim=plain,
        epsilon=1e-6,
    )
    kept = layer.empty_cache(1, 1, like=np.zeros(())).key.size
    sizes = {
        "128 heads of keys and values": heads * (2 * plain + shared),
        "8 heads, of width 128": 2 * 8 * 128,
        "latent and shared key": kept,
    }
    picture = Picture(
        700, 260, "Numbers cached for a token, and products of the expanded and the absorbed form"
    )
    picture.text(20, 24, "numbers cached for a token")
    for i, (name, size) in enumerate(sizes.items()):
        y = 46 + 62 * i
        picture.text(20, y + 8, name)
        picture.bar(20, y + 14, 220 * size / max(sizes.values()), 20)
        picture.text(26 + 220 * size / max(sizes.values()), y + 29, str(size))
    rows, keys = [2**i for i in range(13)], 4096
    into, out = plain + shared, plain  # the widths of a head, expanded
    products = {
        "expanded": [heads * (keys * rank * 2 * plain + n * keys * (into + out)) for n in rows],
        "absorbed": [heads * (n * rank * 2 * plain + n * keys * (kept + rank)) for n in rows],
    }
    picture.curves(
        (390, 34, 290, 176), rows, products, title="products beside 4096 keys", labels=("queries", "products"),
        ticks=({1: "1", 16: "16", 256: "256", 4096: "4096"}, {10.0**e: f"1e{e}" for e in range(8, 14)}),
        log=(True, True), legend=(400, 56),
    )  # fmt: skip
    return picture


def mixing() -> Picture:
    """Two pairs of heads that average; scores that a kernel of three keys averages."""
    n, heads = 9, 4
    q, k = 1.4 * np.random.default_rng(5).normal(size=(2, heads, n, 8))
    values = np.broadcast_to(np.eye(n), (heads, n, n))  # what comes out are the weights
    pairs = np.kron(np.eye(2), np.full((2, 2), 0.5))
    kernel = np.zeros((heads, 1, 3))
    kernel[:, 0, :] = 1.0
    found = {
        "each head alone": attention(q, k, values, is_causal=True),
        "talking heads: weights of 0 and 1, 2 and 3 averaged": talking_heads_attention(
            q, k, values, np.eye(heads), pairs, is_causal=True
        ),
        "multi-token: each score and those of the keys beside it added": multi_token_attention(
            q, k, values, kernel, is_causal=True
        ),
    }
    picture = Picture(
        640, 604, "Weights of four heads alone, mixed by talking heads, and by multi-token attention"
    )
    for i, (name, weights) in enumerate(found.items()):
        top = 56 + 196 * i
        picture.heading(26, top - 32, name)
        for h in range(heads):
            picture.heat(
                26 + 154 * h, top, weights[h], 14, title=f"head {h}", most=1, axes=("key", "query" * (h == 0))
            )
    return picture


def selection() -> Picture:
    """Three keys a row by an indexer; two blocks a row by their mean keys."""
    rng, n, block = np.random.default_rng(2), 16, 4
    q, k = rng.normal(size=(2, 1, n, 8))
    causal = np.tri(n, dtype=bool)
    scores = indexer_scores(rng.normal(size=(3, n, 4)), rng.normal(size=(n, 4)), rng.normal(size=(n, 3)))
    chosen = top_indices(scores, 3, allowed=causal)
    picked = (chosen[..., None] == np.arange(n)).any(-2)
    few = selected_attention(q, k, np.eye(n)[None], chosen[None], is_causal=True)[0]
    means = (q @ pooled_keys(k, block).mT)[0]
    means = np.where(np.arange(n // block) <= np.arange(n)[:, None] // block, means, np.nan)
    blocks = moba_attention(q, k, np.eye(n)[None], block_size=block, count=2)[0]
    picture = Picture(
        690,
        504,
        "Scores of an indexer, the three keys a row they choose, and its weights; the same of blocks",
    )
    first = {
        "scores of the indexer": np.where(causal, scores, np.nan),
        "the 3 best of each row": picked,
        "weights": few,
    }
    second = {
        "scores of the mean keys": np.repeat(means, block, 1),
        "own block and the best": blocks > 0,
        "weights": blocks,
    }
    for top, row in ((28, first), (280, second)):
        for i, (title, values) in enumerate(row.items()):
            picture.heat(26 + 228 * i, top, values, 12.5, title=title, most=1 if title == "weights" else None)
    return picture


def tensor_product() -> Picture:
    """The keys of one token: two outer products, 2 (8 + 16) numbers for 8 x 16."""
    layer = TensorProductAttention(64, 8, q_rank=6, k_rank=2, v_rank=2, head_dim=16)
    x = np.random.default_rng(0).normal(size=(1, 1, 64))
    params = layer.init(seed=0, like=x)
    _, cache, _ = layer.run(params, x, cache=layer.empty_cache(1, 1, like=x))
    factors = cache.key[0, 0, 0]
    a, b = factors[: 2 * 8].reshape(2, 8), factors[2 * 8 :].reshape(2, 16)
    terms = [np.outer(a[r], b[r]) / 2 for r in range(2)]
    most = float(np.abs(sum(terms)).max())
    picture = Picture(
        824, 210, "Two factors over heads, two over entries, and the keys of all heads they make"
    )
    left = 34
    for r, term in enumerate(terms):
        picture.heat(
            left + 40, 52, b[r][None], 12, title=f"B, rank {r}", most=float(np.abs(b).max()), axes=("", "")
        )
        picture.heat(left, 84, a[r][:, None], 12, title="A", most=float(np.abs(a).max()), axes=("", "head"))
        picture.heat(left + 40, 84, term, 12, most=most, axes=("entry", ""))
        picture.text(left + 244, 140, "+="[r], style='font-size="20"')
        left += 294
    picture.heat(left, 84, sum(terms), 12, title="keys of all heads", most=most, axes=("entry", ""))
    return picture


PICTURES = {
    "differential": differential,
    "forgetting": forgetting,
    "latent": latent,
    "mixing": mixing,
    "selection": selection,
    "tensor-product": tensor_product,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (HERE / f"{name}.svg").write_text(str(draw()), encoding="utf-8")
