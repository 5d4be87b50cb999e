"""Differential attention: the difference written out, no array of L S numbers, the module of transformers, its cache."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import formulas, mechanisms
from shared.libraries import torch
from shared.running import LIBRARIES, bench_of, drawn, mapped, normal

from polyattn import AuxRequest
from polyattn.differential import DifferentialAux, differential_attention
from polyattn.layers import DifferentialAttention
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

Q, K, V = normal(2, 4, 5, 6, seed=1), normal(2, 2, 7, 6, seed=2), normal(2, 2, 7, 3, seed=3)
LAMBDAS = np.array([0.25, 0.5, 0.75, 1.5])
LAYER = DifferentialAttention(
    16, 2, num_kv_heads=1, lambda_init=0.2, epsilon=1e-5, rotary=Rotary(), is_causal=True
)
PARAMS, X = drawn(LAYER, seed=4), normal(2, 7, 16, seed=5)
CAUSAL = np.tri(5, 7, 2)


def written_out(q: Any, k: Any, v: Any, lambdas: Any, allowed: Any = CAUSAL) -> Any:
    heads = []
    for h in range(4):
        one, other = (
            formulas.attend(q[:, h, :, part], k[:, h // 2, :, part], v[:, h // 2], allowed=allowed)[1]
            for part in (slice(0, 3), slice(3, 6))
        )
        heads.append((one - lambdas[h] * other) @ v[:, h // 2])
    return formulas.of(q).stack(heads, 1)


def whole(number: Callable[[Any], Any]) -> Any:
    p, x = mapped(number, PARAMS), number(X)
    return mechanisms.differential(p, x, lambda_init=0.2, epsilon=1e-5, allowed=np.tri(7), rotary=True)[0]


@pytest.mark.parametrize("library", LIBRARIES)
def test_it_is_the_difference_of_two_softmaxes_times_the_values(library: str) -> None:
    bench, arrays = bench_of(library), (Q, K, V, LAMBDAS)
    q, k, v, lambdas = (bench.array(x, "float32") for x in arrays)
    found = bench.numpy(differential_attention(q, k, v, lambdas, is_causal=True, query_offset="end"))
    room = 4 * noise(lambda number: written_out(*map(number, arrays)))
    assert np.abs(found - written_out(*arrays)).max() <= room < 1e-4


def test_lambda_may_be_one_number_for_all_heads() -> None:
    options = {"is_causal": True, "query_offset": "end"}
    one, array, each = (
        differential_attention(Q, K, V, lam, **options) for lam in (0.5, np.asarray(0.5), np.full(4, 0.5))
    )
    assert np.array_equal(one, array)
    assert np.array_equal(one, each)


def test_equal_halves_and_lambda_one_leave_exactly_nothing() -> None:
    q, k = np.concatenate([Q, Q], -1), np.concatenate([K, K], -1)
    assert (differential_attention(q, k, V, 1.0) == 0).all()


def test_dropout_is_that_of_the_difference() -> None:
    """Both attentions drop the same weights: with equal halves nothing is left of them."""
    q, k = np.concatenate([Q, Q], -1), np.concatenate([K, K], -1)
    assert (differential_attention(q, k, V, 1.0, dropout_rate=0.5, dropout_seed=3) == 0).all()
    some = differential_attention(Q, K, V, 1.0, dropout_rate=0.5, dropout_seed=3)
    assert not np.array_equal(some, differential_attention(Q, K, V, 1.0))


def test_both_attentions_can_be_seen() -> None:
    out, aux = differential_attention(Q, K, V, LAMBDAS, return_aux=AuxRequest(weights=True))
    assert isinstance(aux, DifferentialAux)
    weights = aux.first.weights - LAMBDAS[:, None, None] * aux.second.weights
    true = np.einsum("bhls,bhse->bhle", weights, np.repeat(V, 2, 1))
    room = 4 * noise(lambda n: written_out(*map(n, (Q, K, V, LAMBDAS)), allowed=1.0)) * 2.0**-29
    assert np.abs(out - true).max() <= room


def test_no_array_of_all_weights_exists() -> None:
    length = 4096
    q = np.zeros((1, length, 8), np.float32)
    tracemalloc.start()
    differential_attention(q, q, q, 0.5, implementation="blockwise")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < length * length * 4 / 4  # a quarter of one float32 matrix of weights


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_decoding_beside_a_cache_equals_the_whole_sequence(library: str) -> None:
    bench = bench_of(library)
    params, x = mapped(lambda w: bench.array(w, "float32"), PARAMS), bench.array(X, "float32")
    cache, outs = LAYER.empty_cache(2, 9, like=x), []
    for t, n in ((0, 4), (4, 1), (5, 2)):
        out, cache, _ = LAYER.run(params, x[:, t : t + n, :], cache=cache)
        outs.append(bench.numpy(out))
    true = whole(lambda x: x)
    assert np.abs(np.concatenate(outs, 1) - true).max() <= 4 * noise(whole) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_it_is_the_attention_of_diffllama_in_transformers() -> None:
    """Its heads come as those of the first softmax, then those of the second; its values as two halves likewise."""
    pytest.importorskip("transformers")
    from transformers import DiffLlamaConfig
    from transformers.models.diffllama import modeling_diffllama as theirs

    config = DiffLlamaConfig(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager"
    )
    torch.manual_seed(0)
    module = theirs.DiffLlamaAttention(config, 1)
    x = torch.tensor(X, dtype=torch.float32)
    turns = theirs.DiffLlamaRotaryEmbedding(config)(x, torch.arange(7)[None])
    hidden = torch.full((1, 1, 7, 7), -torch.inf).triu(1)
    out = module(x, turns, attention_mask=hidden)[0].detach().numpy()

    w = {name: p.detach().numpy() for name, p in module.state_dict().items()}
    halves = {name: w[f"{name}_proj.weight"].T.reshape(16, 2, -1, 4) for name in "qkv"}  # (E, half, heads, D)
    params = {f"w_{name}": np.concatenate([x[:, 0], x[:, 1]], -1) for name, x in halves.items()}
    params |= {name: w[name] for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")}
    params |= {"w_o": w["o_proj.weight"].T.reshape(2, 8, 16), "norm": {"scale": np.ones(8, np.float32)}}
    how = {"lambda_init": module.lambda_init, "epsilon": config.rms_norm_eps}
    layer = DifferentialAttention(16, 2, num_kv_heads=1, rotary=Rotary(), is_causal=True, **how)

    def f(number: Callable[[Any], Any]) -> Any:
        p = mapped(number, params)
        return mechanisms.differential(p, number(X), **how, allowed=np.tri(7), rotary=True)[0]

    ours = layer(params, x.numpy())
    assert np.abs(ours - out).max() <= 8 * noise(f) < 1e-4  # both err


WHO = "polyattn.layers.DifferentialAttention"
FUNCTION = "polyattn.differential.differential_attention"
ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "odd heads": (
        lambda: DifferentialAttention(9, 3, lambda_init=0.2, epsilon=1e-5),
        f"{WHO}: expected heads of an even width, got 3; the halves are those of the two softmaxes",
    ),
    "kv heads": (
        lambda: DifferentialAttention(16, 4, num_kv_heads=3, lambda_init=0.2, epsilon=1e-5),
        f"{WHO}: expected num_kv_heads to divide num_heads, got num_heads=4 and num_kv_heads=3; each kv head serves "
        "equally many query heads",
    ),
    "heads": (
        lambda: DifferentialAttention(16, 3, lambda_init=0.2, epsilon=1e-5),
        f"{WHO}: expected num_heads to divide embed_dim, got embed_dim=16 and num_heads=3; change one of them, or give "
        "head_dim",
    ),
    "lambda_init": (
        lambda: DifferentialAttention(16, 2, lambda_init="0.2", epsilon=1e-5),  # type: ignore[arg-type]
        f"{WHO}: expected lambda_init to be a Python number, got '0.2'; pass a Python float",
    ),
    "odd width": (
        lambda: differential_attention(Q[..., :5], K, V, 0.5),
        f"{FUNCTION}: expected query (..., length, 2 D) of an even width, got (2, 4, 5, 5); its halves are those of the "
        "two softmaxes, side by side",
    ),
    "lam": (
        lambda: differential_attention(Q, K, V, np.ones(3)),
        f"{FUNCTION}: expected lam to be a number, or an array of numpy of shape () or (4,), got ndarray of shape (3,); "
        "one for all heads, or one for each",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == sentence
