"""Latent attention: both forms, the cache of latents, the module of transformers, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from shared import mechanisms
from shared.libraries import jax, polyattn_autograd, torch
from shared.running import LIBRARIES, Floats, bench_of, drawn, mapped, normal

from polyattn import AuxRequest, layers, masks
from polyattn.latent import latent_attention
from polyattn.layers import LatentAttention
from polyattn.parity import UNIT_ROUNDOFF
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

SIZES: dict[str, Any] = {"kv_lora_rank": 8, "qk_nope_head_dim": 6, "qk_rope_head_dim": 4, "v_head_dim": 5}
LAYER = LatentAttention(
    16, 4, **SIZES, epsilon=1e-6, q_lora_rank=6, rotary=Rotary(interleaved=True), is_causal=True
)
PARAMS = drawn(LAYER, seed=1)
X = normal(2, 7, 16, seed=2)
Q, C = normal(2, 4, 3, 10, seed=3), normal(2, 1, 7, 12, seed=4)
W_UK, W_UV = normal(8, 4, 6, seed=5, size=0.5), normal(8, 4, 5, seed=6, size=0.5)


def formula(q: Any, c: Any, w_uk: Any, w_uv: Any) -> Any:
    """Head by head, with keys and values written out: (B, H, L, E)."""
    of = mechanisms.of(q)
    latent, shared = c[:, 0, :, :8], c[:, 0, :, 8:]
    heads = [
        mechanisms.attend(
            q[:, h],
            of.concatenate([latent @ w_uk[:, h], shared], -1),
            latent @ w_uv[:, h],
            allowed=np.tri(3, 7, 4),
        )[0]
        for h in range(4)
    ]
    return of.stack(heads, 1)


def room(f: Callable[..., Any], arrays: Any, dtype: str) -> float:
    """4 x the rounding noise of a formula."""
    return 4 * noise(lambda number: f(*map(number, arrays))) * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]


def causal(absorbed: bool | None) -> Callable[..., Any]:
    return lambda *arrays: latent_attention(*arrays, absorbed=absorbed, is_causal=True, query_offset="end")


@pytest.mark.parametrize("absorbed", [True, False, None])
@pytest.mark.parametrize("library", LIBRARIES)
def test_both_forms_are_attention_to_keys_and_values_written_out(library: str, absorbed: bool | None) -> None:
    bench, arrays = bench_of(library), (Q, C, W_UK, W_UV)
    found = bench.numpy(causal(absorbed)(*(bench.array(x, "float32") for x in arrays)))
    assert np.abs(found - formula(*arrays)).max() <= room(formula, arrays, "float32") < 1e-4


@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("library", ["autograd", "jax", "torch"])
def test_both_forms_have_the_gradients_of_the_formula(library: str, absorbed: bool) -> None:
    arrays, f = (Q, C, W_UK, W_UV), causal(absorbed)
    weight = normal(2, 4, 3, 5, seed=7)

    def of_torch(f: Callable[..., Any], dtype: Any) -> list[Floats]:
        given = [torch.tensor(x, dtype=dtype, requires_grad=True) for x in arrays]
        (f(*given) * torch.tensor(weight, dtype=dtype)).sum().backward()
        return [x.grad.double().numpy() for x in given]

    if library == "torch":
        found = of_torch(f, torch.float32)
    elif library == "autograd":
        given = [x.astype(np.float32) for x in arrays]
        found = list(polyattn_autograd.vjp(lambda xs: f(*xs), given)[1](weight.astype(np.float32)))
    else:
        bench = bench_of(library)
        given = [bench.array(x, "float32") for x in (*arrays, weight)]
        found = jax.jit(jax.grad(lambda *xs: (f(*xs[:4]) * xs[4]).sum(), argnums=(0, 1, 2, 3)))(*given)
    true, rounded = of_torch(formula, torch.float64), of_torch(formula, torch.float32)
    for ours, theirs, their_rounded in zip(found, true, rounded, strict=True):
        unit = max(np.abs(their_rounded - theirs).max(), UNIT_ROUNDOFF["float32"] * np.abs(theirs).max())
        assert np.abs(np.asarray(ours) - theirs).max() <= 4 * unit < 1e-3


def test_the_form_with_fewer_products_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from polyattn import latent

    attend = latent._attention.attend
    monkeypatch.setattr(
        latent._attention,
        "attend",
        lambda who, q, k, v, **o: seen.append(k.shape[-3]) or attend(who, q, k, v, **o),
    )
    w_uk, w_uv = np.zeros((8, 2, 3)), np.zeros((8, 2, 3))
    for rows in (1, 64):
        latent_attention(np.zeros((2, rows, 5)), np.zeros((1, 64, 10)), w_uk, w_uv)
    assert seen == [1, 2]  # one kv head: absorbed


@pytest.mark.parametrize("library", [name for name in LIBRARIES if name != "jax"])  # which compiles: below
@pytest.mark.parametrize("pieces", [(1,) * 7, (4, 3)])
def test_decoding_beside_a_cache_of_latents_equals_the_whole_sequence(
    library: str, pieces: tuple[int, ...]
) -> None:
    bench = bench_of(library)
    params, x = mapped(lambda w: bench.array(w, "float32"), PARAMS), bench.array(X, "float32")
    cache, outs, at = LAYER.empty_cache(2, 9, like=x), [], 0
    assert (cache.key.shape, cache.value.shape) == ((2, 1, 9, 12), (2, 1, 9, 8))
    for n in pieces:
        out, cache, _ = LAYER.run(params, x[:, at : at + n, :], cache=cache)
        outs.append(bench.numpy(out))
        at += n
    true = mechanisms.latent(PARAMS, X, epsilon=1e-6, allowed=np.tri(7))[0]
    assert np.abs(np.concatenate(outs, 1) - true).max() <= layer_room("float32") < 1e-4


def layer_room(dtype: str) -> float:
    def f(number: Callable[[Any], Any]) -> Any:
        return mechanisms.latent(mapped(number, PARAMS), number(X), epsilon=1e-6, allowed=np.tri(7))[0]

    return 4 * noise(f) * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]


def test_texts_of_different_length_share_a_cache() -> None:
    lengths = np.array([3, 1], np.int32)
    cache = LAYER.empty_cache(2, 9, like=X)
    cache = LAYER.run(PARAMS, X[:, :3], cache=cache).cache._replace(length=lengths)
    out = LAYER.run(PARAMS, X[:, 3:5], cache=cache).out
    for item, n in enumerate(lengths):
        alone = np.concatenate([X[item, :n], X[item, 3:5]])
        assert np.abs(out[item] - LAYER(PARAMS, alone)[n:]).max() <= layer_room("float64")


def test_what_an_empty_slot_holds_changes_no_bit() -> None:
    before = LAYER.run(PARAMS, X[:, :3], cache=LAYER.empty_cache(2, 9, like=X)).cache
    poisoned = before._replace(key=before.key.copy())
    poisoned.key[:, :, 4:] = np.nan  # of which the values are a part
    outs = [LAYER.run(PARAMS, X[:, 3:4], cache=cache).out for cache in (before, poisoned)]
    assert np.array_equal(*outs)


def test_a_compiled_step_serves_every_position() -> None:
    step = jax.jit(lambda p, x, cache: LAYER.run(p, x, cache=cache)[:2])
    params, x = mapped(jax.numpy.float32, PARAMS), jax.numpy.float32(X)
    cache, outs = LAYER.empty_cache(2, 9, like=x), []
    cache = cache._replace(length=jax.numpy.int32(0))
    for t in range(7):
        out, cache = step(params, x[:, t : t + 1], cache)
        outs.append(np.asarray(out))
    assert step._cache_size() == 1
    true = mechanisms.latent(PARAMS, X, epsilon=1e-6, allowed=np.tri(7))[0]
    assert np.abs(np.concatenate(outs, 1) - true).max() <= layer_room("float32")


def from_transformers(state: dict[str, Any]) -> dict[str, Any]:
    """The arrays of a DeepseekV3Attention under our names."""
    w = {name: x.detach().numpy() for name, x in state.items()}
    ranked = "q_b_proj.weight" in w
    q = w["q_b_proj.weight" if ranked else "q_proj.weight"].T.reshape(-1, 4, 10)
    both, down = w["kv_b_proj.weight"].T.reshape(8, 4, 11), w["kv_a_proj_with_mqa.weight"].T
    params = {
        "w_uq": q[..., :6],
        "w_qr": q[..., 6:],
        "w_dkv": down[:, :8],
        "w_kr": down[:, 8:],
        "kv_norm": {"scale": w["kv_a_layernorm.weight"]},
        "w_uk": both[..., :6],
        "w_uv": both[..., 6:],
        "w_o": w["o_proj.weight"].T.reshape(4, 5, 16),
    }
    if ranked:
        params |= {"w_dq": w["q_a_proj.weight"].T, "q_norm": {"scale": w["q_a_layernorm.weight"]}}
    return params


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("version", "rank"), [("DeepseekV2", 6), ("DeepseekV3", 6), ("DeepseekV3", None)])
def test_it_is_the_attention_of_deepseek_in_transformers(version: str, rank: int | None) -> None:
    pytest.importorskip("transformers")
    from importlib import import_module

    name = f"deepseek_{version[-2:].lower()}"
    theirs = import_module(f"transformers.models.{name}.modeling_{name}")
    config = import_module(f"transformers.models.{name}.configuration_{name}")
    made = getattr(config, f"{version}Config")(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=rank,
        **SIZES,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    module = getattr(theirs, f"{version}Attention")(made, 0)
    for norm in (m for m in module.modules() if m.__class__.__name__.endswith("Norm")):
        torch.nn.init.normal_(norm.weight)
    x = torch.tensor(X, dtype=torch.float32)
    turns = getattr(theirs, f"{version}RotaryEmbedding")(made)(x, torch.arange(7)[None])
    hidden = torch.full((1, 1, 7, 7), -torch.inf).triu(1)
    out = module(x, position_embeddings=turns, attention_mask=hidden)[0].detach().numpy()
    layer = LatentAttention(
        16, 4, **SIZES, epsilon=1e-6, q_lora_rank=rank, rotary=Rotary(interleaved=True), is_causal=True
    )
    params = from_transformers(module.state_dict())

    def f(number: Callable[[Any], Any]) -> Any:
        return mechanisms.latent(mapped(number, params), number(X), epsilon=1e-6, allowed=np.tri(7))[0]

    ours = layer(params, x.numpy())
    assert np.abs(ours - out).max() <= 8 * noise(f) < 1e-5  # both err


def test_weights_and_dropout_are_those_of_attention() -> None:
    layer = LatentAttention(16, 4, **SIZES, epsilon=1e-6, dropout_rate=0.5)
    params, asked = drawn(layer), AuxRequest(weights=True)
    out, _, aux = layer.run(params, X, return_aux=asked, dropout_seed=3)
    assert aux.weights.shape == (2, 4, 7, 7)
    assert layer.has_dropout
    assert not np.array_equal(out, layer(params, X))
    seen = layer.run(params, X, mask=masks.key_lengths([7, 2]), return_aux=asked).aux.weights
    assert (seen[1, ..., 2:] == 0).all()


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "rank": (
        lambda: LatentAttention(16, 4, **SIZES | {"kv_lora_rank": 0}, epsilon=1e-6),
        "polyattn.layers.LatentAttention: expected kv_lora_rank to be a positive int, got 0; give a size of at least 1",
    ),
    "odd": (
        lambda: LatentAttention(16, 4, **SIZES | {"qk_rope_head_dim": 3}, epsilon=1e-6, rotary=Rotary()),
        "polyattn.layers.LatentAttention: expected an even qk_rope_head_dim with rotary, got 3; entries are turned in "
        "pairs",
    ),
    "cache": (
        lambda: LAYER.run(PARAMS, X, cache=X),  # type: ignore[arg-type]
        "polyattn.layers.LatentAttention: expected a cache such as KVCache, got an array of shape (2, 7, 16) and dtype "
        "float64; write cache=layer.empty_cache(batch, capacity, like=x)",
    ),
    "heads": (
        lambda: latent_attention(Q, Q, W_UK, W_UV),
        "polyattn.latent.latent_attention: expected query (..., H, L, N + P) and latent (..., 1, S, R + P), got "
        "(2, 4, 3, 10) and (2, 4, 3, 10); all heads read one latent",
    ),
    "maps": (
        lambda: latent_attention(Q, C, W_UK, W_UV[:3]),
        "polyattn.latent.latent_attention: expected w_uk (R, H, N) and w_uv (R, H, E), got (8, 4, 6) and (3, 4, 5); "
        "both map latents to heads",
    ),
    "width": (
        lambda: latent_attention(Q[..., :9], C, W_UK, W_UV),
        "polyattn.latent.latent_attention: expected query (..., 4, L, 6 + P) and latent (..., 1, S, 8 + P), got "
        "(2, 4, 3, 9) and (2, 1, 7, 12); w_uk is (8, 4, 6)",
    ),
    "dtype": (
        lambda: latent_attention(Q, C, W_UK.astype(np.float32), W_UV),
        "polyattn.latent.latent_attention: expected w_uk of the library and dtype of query, numpy and float64, got "
        "ndarray (float32); convert it",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = ERRORS[name]
    with pytest.raises((TypeError, ValueError)) as error:
        call()
    assert str(error.value) == sentence


def test_the_layer_has_the_parameters_that_it_says() -> None:
    shapes = layers.LatentAttention(16, 4, **SIZES, epsilon=1e-6).shapes()
    assert sorted(shapes) == sorted(["kv_norm", "w_dkv", "w_kr", "w_o", "w_qr", "w_uk", "w_uq", "w_uv"])
