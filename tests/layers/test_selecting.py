"""How keys and blocks are selected: the largest, an indexer, MoBA, NSA, and all of DeepSeek's sparse attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import formulas, mechanisms
from shared.libraries import jax, torch
from shared.mechanisms import masked
from shared.running import LIBRARIES, bench_of, mapped, normal

from polyattn import attention
from polyattn.layers import LatentAttention
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.rotary import Rotary
from polyattn.selection import (
    indexer_scores,
    moba_attention,
    nsa_attention,
    pooled_keys,
    selected_attention,
    top_indices,
)
from polyattn.truth.rounding import noise

L, S = 6, 11
Q, K, V = normal(2, 4, L, 5, seed=1), normal(2, 2, S, 5, seed=2), normal(2, 2, S, 3, seed=3)
OFFSET = S - L


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_largest_are_taken_and_of_equal_ones_the_first(library: str) -> None:
    bench = bench_of(library)
    scores = np.array([[1.0, 3.0, 3.0, 2.0, 3.0], [0.0, -np.inf, np.nan, -1.0, 0.0]])
    found = bench.numpy(top_indices(bench.array(scores, "float32"), 4))
    assert found.tolist() == [[1, 2, 4, 3], [0, 4, 3, -1]]
    allowed = np.array([[True, False, True, True, True], [True, True, True, True, False]])
    always = np.array([[False, False, False, True, False], [False, False, False, True, True]])
    options = {"allowed": bench.array(allowed, "float32"), "always": bench.array(always, "float32")}
    found = bench.numpy(top_indices(bench.array(scores, "float32"), 2, **options))
    assert found.tolist() == [[3, 2], [3, 0]]
    assert bench.numpy(top_indices(bench.array(scores, "float32"), 9)).shape == (2, 5)


def test_pooled_keys_are_means_of_the_keys_that_are_there() -> None:
    found = pooled_keys(K, 4)
    true = np.stack([K[..., i : i + 4, :].sum(-2) / len(range(i, min(i + 4, S))) for i in (0, 4, 8)], -2)
    assert np.abs(found - true).max() <= 4 * UNIT_ROUNDOFF["float64"] * np.abs(K).max()


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_moba_is_attention_to_the_own_block_and_the_best_earlier_ones(library: str, count: int) -> None:
    block, bench = 4, bench_of(library)
    allowed = np.zeros((2, 4, L, S), bool)
    for b, h, i in np.ndindex(2, 4, L):
        at = i + OFFSET
        blocks = [range(n, min(n + block, S)) for n in range(0, at + 1, block)]
        score = [Q[b, h, i] @ sum(K[b, h // 2, j] for j in keys) / len(keys) for keys in blocks]
        best = sorted(range(len(blocks) - 1), key=lambda n: -score[n])[: count - 1]
        for n in (*best, len(blocks) - 1):
            allowed[b, h, i, [j for j in blocks[n] if j <= at]] = True
    arrays = (Q, K, V, np.full(4, -np.inf))
    given = [bench.array(x, "float32") for x in (Q, K, V)]
    found = bench.numpy(moba_attention(*given, block_size=block, count=count, query_offset="end"))
    plain = [np.full(4, -1e30)]  # a sink that takes nothing
    true = masked(*arrays[:3], *plain, allowed)
    room = 4 * noise(lambda number: masked(*map(number, (*arrays[:3], *plain)), allowed))
    assert np.abs(found - true).max() <= room < 1e-4


def test_moba_of_all_blocks_is_causal_attention() -> None:
    found = moba_attention(Q, K, V, block_size=4, count=3, query_offset="end")
    true = attention(Q, K, V, is_causal=True, query_offset="end")
    assert np.abs(found - true).max() <= 64 * UNIT_ROUNDOFF["float64"] * np.abs(V).max()


def nsa(q: Any, k: Any, v: Any, ck: Any, cv: Any, gates: Any, allowed: Any = None) -> Any:
    """Row by row: the own block of 4 and the best one before it, a window of 3; allowed: what is selected, if that is known."""
    seen = np.zeros((2, 4, L, S)) if allowed is None else allowed
    at, near = np.arange(L)[:, None] + OFFSET, np.arange(S)
    whole = (np.arange(3) * 4 + 3 <= at).astype(float)
    window = ((near <= at) & (near > at - 3)).astype(float)
    found = [formulas.attend(q[:, h], ck[:, h // 2], cv[:, h // 2], allowed=whole) for h in range(4)]
    if allowed is None:
        for b, g, i in np.ndindex(2, 2, L):
            own = (i + OFFSET) // 4
            weight = found[2 * g][1][b, i] + found[2 * g + 1][1][b, i]
            best = sorted(range(own), key=lambda n: -weight[n])
            for n in [own, *best][:2]:
                seen[b, 2 * g : 2 * g + 2, i, 4 * n : 4 * n + 4] = 1
        seen = seen * (near <= at)
    outs = []
    for h in range(4):
        selected, near_by = (
            formulas.attend(q[:, h], k[:, h // 2], v[:, h // 2], allowed=m)[0] for m in (seen[:, h], window)
        )
        parts = (found[h][0], selected, near_by)
        outs.append(sum(gates[:, h, :, i : i + 1] * part for i, part in enumerate(parts)))
    return formulas.of(q).stack(outs, 1), seen


NSA = (Q, K, V, normal(2, 2, 3, 5, seed=4), normal(2, 2, 3, 3, seed=5), normal(2, 4, L, 3, seed=6))


@pytest.mark.parametrize("library", ["numpy", "autograd", "strict", "jax", "torch"])
def test_nsa_is_three_attentions_weighed_by_gates(library: str) -> None:
    bench = bench_of(library)

    def f(*arrays: Any) -> Any:
        return nsa_attention(*arrays, block_size=4, count=2, window=3, initial=0, local=1, query_offset="end")

    true, seen = nsa(*NSA)
    run = jax.jit(f) if library == "jax" else f
    found = bench.numpy(run(*(bench.array(x, "float32") for x in NSA)))
    room = 4 * noise(lambda number: nsa(*map(number, NSA), seen)[0])
    assert np.abs(found - true).max() <= room < 1e-4


def test_nsa_of_all_blocks_or_of_a_window_over_all_keys_is_causal_attention() -> None:
    true = attention(Q, K, V, is_causal=True, query_offset="end")
    for gate, count, window in ((1, 3, 1), (2, 1, S)):
        gates = np.zeros((2, 4, L, 3))
        gates[..., gate] = 1.0
        found = nsa_attention(*NSA[:5], gates, block_size=4, count=count, window=window, query_offset="end")
        assert np.abs(found - true).max() <= 64 * UNIT_ROUNDOFF["float64"] * np.abs(V).max()


def test_the_first_block_and_the_last_two_are_always_selected() -> None:
    k = np.zeros((1, 1, 20, 1))
    v = np.arange(20.0).reshape(1, 1, 20, 1)
    ck = np.zeros((1, 1, 5, 1))
    gates = np.array([0.0, 1.0, 0.0]) * np.ones((1, 1, 20, 1))
    found = nsa_attention(np.ones((1, 1, 20, 1)), k, v, ck, ck, gates, block_size=4, count=3, window=1)
    mean = np.mean([*range(4), *range(12, 20)])  # blocks 0, 3 and 4 of the last row
    assert abs(found[0, 0, -1, 0] - mean) <= 64 * UNIT_ROUNDOFF["float64"] * 20


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_indexer_is_its_formula(library: str) -> None:
    q, k, w = normal(2, 3, L, 5, seed=1), normal(2, S, 5, seed=2), normal(2, L, 3, seed=3)

    def formula(q: Any, k: Any, w: Any) -> Any:
        found = 0.0
        for h in range(3):
            dots = q[:, h] @ k.swapaxes(-1, -2)
            found = found + w[:, :, h][..., None] * (dots * (dots > 0))
        return found

    bench = bench_of(library)
    found = bench.numpy(indexer_scores(*(bench.array(x, "float32") for x in (q, k, w))))
    room = 4 * noise(lambda number: formula(*map(number, (q, k, w))))
    assert np.abs(found - formula(q, k, w)).max() <= room < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_the_indexer_selects_what_that_of_deepseek_in_transformers_selects() -> None:
    pytest.importorskip("transformers")
    from transformers import DeepseekV32Config
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as theirs

    config = DeepseekV32Config(
        hidden_size=16, q_lora_rank=6, index_n_heads=3, index_head_dim=8, qk_rope_head_dim=4, index_topk=4
    )
    torch.manual_seed(0)
    module, x, u = theirs.DeepseekV32Indexer(config, 0), torch.randn(2, 9, 16), torch.randn(2, 9, 6)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()
    still = (torch.ones(1, 9, 4), torch.zeros(1, 9, 4))  # cos and sin that turn nothing
    chosen = module(x, u, still, seen, torch.arange(9)[None])
    q = (u @ module.wq_b.weight.T).reshape(2, 9, 3, 8).permute(0, 2, 1, 3)
    k = module.k_norm(x @ module.wk.weight.T)
    w = (x @ module.weights_proj.weight.T) * (3 * 8) ** -0.5  # they scale by heads and width
    ours = top_indices(indexer_scores(q, k, w), 4, allowed=seen)
    for row in range(9):
        for item in range(2):
            mine, there = (set(c[item, row].tolist()) for c in (ours, chosen))
            assert mine - {-1} == {i for i in there if i <= row}


@pytest.mark.filterwarnings("ignore")
def test_latents_an_indexer_and_gathered_keys_are_the_sparse_attention_of_deepseek_in_transformers() -> None:
    """Theirs: keys and values of all heads, and a dense mask. Ours: one head of gathered latents, absorbed."""
    pytest.importorskip("transformers")
    from transformers import DeepseekV32Config
    from transformers.models.deepseek_v32 import modeling_deepseek_v32 as theirs

    sizes = {
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 6,
        "qk_rope_head_dim": 4,
        "v_head_dim": 5,
        "q_lora_rank": 6,
    }
    indexer = {"index_n_heads": 3, "index_head_dim": 8, "index_topk": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    config = DeepseekV32Config(hidden_size=16, **heads, **sizes, **indexer, attn_implementation="eager")
    torch.manual_seed(0)
    module, x = theirs.DeepseekV32Attention(config, 0), torch.randn(2, 9, 16)
    turns = theirs.DeepseekV32RotaryEmbedding(config)(x, torch.arange(9)[None])
    hidden = torch.full((2, 1, 9, 9), -torch.inf).triu(1)
    true = module(x, turns, hidden)[0]
    chosen = module.indexer(x, module.q_a_layernorm(module.q_a_proj(x)), turns, hidden[:, 0], None)

    w = {name: p.T for name, p in module.named_parameters()}
    q, both = (w[f"{name}_b_proj.weight"].reshape(-1, 4, n) for name, n in (("q", 10), ("kv", 11)))
    down = w["kv_a_proj_with_mqa.weight"]
    params = {
        "w_dq": w["q_a_proj.weight"],
        "w_uq": q[..., :6],
        "w_qr": q[..., 6:],
        "w_dkv": down[:, :8],
        "w_kr": down[:, 8:],
        "w_uk": both[..., :6],
        "w_uv": both[..., 6:],
        "w_o": w["o_proj.weight"].reshape(4, 5, 16),
        "q_norm": {"scale": w["q_a_layernorm.weight"]},
        "kv_norm": {"scale": w["kv_a_layernorm.weight"]},
    }
    layer = LatentAttention(16, 4, **sizes, epsilon=1e-6, rotary=Rotary(interleaved=True))
    q, key, c = layer.project(params, x, torch.arange(9))
    q = torch.cat([torch.einsum("bhln,rhn->bhlr", q[..., :6], params["w_uk"]), q[..., 6:]], -1)
    found = selected_attention(q, key, c, chosen[:, None], is_causal=True, scale=10**-0.5)
    found = torch.einsum("bhlr,rhe,heo->blo", found, params["w_uv"], params["w_o"])

    def formula(number: Callable[[Any], Any]) -> Any:
        p = mapped(lambda x: number(x.detach().numpy()), params)
        allowed = (chosen.numpy()[..., None] == np.arange(9)).any(-2) * np.tri(9)
        return mechanisms.latent(p, number(x.numpy()), epsilon=1e-6, allowed=allowed)[0]

    assert float((found - true).abs().max()) <= 8 * noise(formula) < 1e-5  # both err


WHO = "polyattn.selection"
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "where the rows stand": (
        lambda: moba_attention(Q, K, V, block_size=4, count=2),
        f"{WHO}.moba_attention: expected query_offset",
    ),
    "count": (
        lambda: top_indices(Q, 0),
        f"{WHO}.top_indices: expected count >= 1, got 0; pass a larger number",
    ),
    "allowed": (
        lambda: top_indices(Q, 2, allowed=Q),
        f"{WHO}.top_indices: expected allowed of bool and of numpy, got an array of shape (2, 4, 6, 5) and dtype float64; "
        "True = may be selected",
    ),
    "gates": (
        lambda: nsa_attention(*NSA[:5], Q, block_size=4, count=1, window=1, query_offset="end"),
        f"{WHO}.nsa_attention: expected gates of numpy and of shape (2, 4, 6, 3), got (2, 4, 6, 5); one for each row, and each "
        "of compressed, selected and window",
    ),
    "compressed": (
        lambda: nsa_attention(*NSA, block_size=2, count=1, window=1, query_offset="end"),
        f"{WHO}.nsa_attention: expected compressed_key (..., 6, D) for 11 keys in blocks of 2, got (2, 2, 3, 5); the last block "
        "counts even if it is not complete",
    ),
    "weights": (
        lambda: indexer_scores(Q, K[:, 0], Q[:, 0]),
        f"{WHO}.indexer_scores: expected weights of shape (2, 6, 4), got (2, 6, 5); query is (2, 4, 6, 5)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value).startswith(sentence)
