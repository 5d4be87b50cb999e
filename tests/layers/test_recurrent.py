"""Recurrent layers: what transformers computes, in pieces of any length, with a state that never grows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from shared import formulas
from shared.libraries import installed, jax, jnp, torch
from shared.running import LIBRARIES, Floats, applied, bench_of, drawn, mapped, normal

from polyattn import AuxRequest, layers, weights
from polyattn.caches import RecurrentCache
from polyattn.linear import l2norm, lightning_slopes
from polyattn.parity import ACCEPTANCE, UNIT_ROUNDOFF
from polyattn.truth.rounding import noise

Params = dict[str, Any]
BATCH, TOKENS, E = 2, 21, 8
X = normal(BATCH, TOKENS, E)
SLOPES = lightning_slopes(2, layer=1, depth=3)


class Kind(NamedTuple):
    """A layer, its formula, and the module of transformers that it is."""

    layer: Any
    formula: Callable[..., Any]
    format: str | None = None


KINDS = {
    "LinearAttention": Kind(layers.LinearAttention(E, 2, chunk_size=8), formulas.linear_attention),
    "LightningAttention": Kind(
        layers.LightningAttention(E, 2, head_dim=3, slopes=SLOPES, chunk_size=8),
        partial(formulas.lightning, slopes=SLOPES),
        "minimax",
    ),
    "GatedDeltaNet": Kind(
        layers.GatedDeltaNet(E, 2, num_value_heads=4, head_dim=3, value_dim=5, chunk_size=8),
        formulas.gated_delta_net,
        "qwen3_next",
    ),
    "KimiDeltaAttention": Kind(
        layers.KimiDeltaAttention(E, 2, head_dim=3, chunk_size=8),
        formulas.kimi_delta_attention,
        "kimi_linear",
    ),
}
THEIRS = [name for name, kind in KINDS.items() if kind.format]
every_kind = pytest.mark.parametrize("name", KINDS)
of_theirs = pytest.mark.parametrize("name", THEIRS)


@cache
def unit(name: str) -> float:
    """What one rounding to float32, everywhere, does to the output."""
    layer, formula, _ = KINDS[name]
    params = drawn(layer)
    return noise(lambda number: formula(mapped(number, params), number(X))[0], 2)


def allowed(name: str, dtype: str) -> float:
    return ACCEPTANCE * unit(name) * UNIT_ROUNDOFF[dtype] / UNIT_ROUNDOFF["float32"]


def truth(name: str) -> Floats:
    return np.asarray(KINDS[name].formula(drawn(KINDS[name].layer), X)[0])


def in_pieces(layer: Any, params: Any, x: Any, cuts: tuple[int, ...], state: Any) -> Any:
    """The outputs of the pieces, and the cache at the end."""
    outs, start = [], 0
    for n in cuts:
        out, state, _ = layer.run(params, x[:, start : start + n, ...], cache=state)
        outs.append(out)
        start += n
    return tuple(outs), state


@pytest.mark.parametrize(
    ("name", "library"),
    [(name, library) for name in KINDS for library in LIBRARIES if library != "jax"]
    + [("GatedDeltaNet", "jax")],
)
def test_pieces_of_1_3_and_17_tokens_are_the_whole(name: str, library: str) -> None:
    layer = KINDS[name].layer

    def call(params: Any, x: Any) -> Any:
        return in_pieces(layer, params, x, (1, 3, 17), layer.empty_cache(BATCH, TOKENS, like=x))

    outs, state = applied(library, call, drawn(layer), X)
    assert np.abs(np.concatenate(outs, axis=1) - truth(name)).max() <= allowed(name, "float32")
    assert state.length == TOKENS


@every_kind
def test_one_token_at_a_time_is_the_whole_in_float64(name: str) -> None:
    layer = KINDS[name].layer
    params, room = drawn(layer), allowed(name, "float64")
    empty = layer.empty_cache(BATCH, 0, like=X)
    for cuts in ((TOKENS,), (1,) * TOKENS, (0, 20, 1)):
        outs, state = in_pieces(layer, params, X, cuts, empty)
        assert np.abs(np.concatenate(outs, axis=1) - truth(name)).max() <= room
        assert [np.shape(part) for part in state[:2]] == [part.shape for part in empty[:2]]


@every_kind
def test_the_bound_notices_a_state_or_a_tail_that_is_forgotten(name: str) -> None:
    layer = KINDS[name].layer
    params, empty = drawn(layer), layer.empty_cache(BATCH, 0, like=X)
    _, state = in_pieces(layer, params, X, (17,), empty)
    for part in ("state", "tail"):
        if getattr(empty, part).size:
            forgot = state._replace(**{part: getattr(empty, part)})
            out = layer.run(params, X[:, 17:], cache=forgot).out
            assert np.abs(out - truth(name)[:, 17:]).max() > 1000 * allowed(name, "float32")


@pytest.mark.parametrize("library", ["numpy", "torch"])
@every_kind
def test_half_precision_keeps_its_state_in_float32(name: str, library: str) -> None:
    layer = KINDS[name].layer

    def call(params: Any, x: Any) -> Any:
        out, state, _ = layer.run(params, x, cache=layer.empty_cache(BATCH, 0, like=x))
        assert out.dtype == x.dtype
        assert str(state.state.dtype).endswith("float32")
        return out

    out = applied(library, call, drawn(layer), X, dtype="float16")
    assert np.abs(out - truth(name)).max() <= allowed(name, "float16")


def test_a_step_is_compiled_once_for_every_position() -> None:
    layer = KINDS["GatedDeltaNet"].layer
    traced = []

    @jax.jit
    def step(params: Any, x: Any, state: Any) -> Any:
        traced.append(x.shape)
        return layer.run(params, x, cache=state)[:2]

    params, x = mapped(lambda a: jnp.asarray(a, jnp.float32), drawn(layer)), jnp.asarray(X, jnp.float32)
    state, outs = layer.empty_cache(BATCH, 0, like=x)._replace(length=jnp.int32(0)), []
    for t in range(TOKENS):
        out, state = step(params, x[:, t : t + 1], state)
        outs.append(np.asarray(out))
    assert len(traced) == 1
    assert np.abs(np.concatenate(outs, axis=1) - truth("GatedDeltaNet")).max() <= allowed(
        "GatedDeltaNet", "float32"
    )
    assert state.length == TOKENS


def test_pytorch_traces_it_whole() -> None:
    layer = KINDS["GatedDeltaNet"].layer
    params = mapped(torch.from_numpy, drawn(layer))
    compiled = torch.compile(lambda params, x: layer(params, x), fullgraph=True, backend="eager")
    out = compiled(params, torch.from_numpy(X)).numpy()
    assert np.abs(out - truth("GatedDeltaNet")).max() <= allowed("GatedDeltaNet", "float64")


@every_kind
def test_what_a_block_says_to_attention_may_be_said_to_it(name: str) -> None:
    layer = KINDS[name].layer
    params = drawn(layer)
    said = layer(params, X, is_causal=True, dropout_seed=3)  # a seed from which nothing is drawn
    assert np.array_equal(said, layer(params, X))


# what transformers computes


@cache
def theirs(name: str) -> Any:
    """The module of transformers in float64, its numbers drawn at random."""
    if not installed("transformers"):
        pytest.skip("transformers is not installed")
    found = {"num_hidden_layers": 3, "layer_types": ["linear_attention"] * 3, "hidden_size": E}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        if name == "GatedDeltaNet":
            from transformers.models.qwen3_next import modeling_qwen3_next as model

            heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
            widths = {"linear_key_head_dim": 3, "linear_value_head_dim": 5, "rms_norm_eps": 1e-6}
            module = model.Qwen3NextGatedDeltaNet(model.Qwen3NextConfig(**found, **heads, **widths), 1)
        elif name == "KimiDeltaAttention":
            from transformers.models.kimi_linear import modeling_kimi_linear as model

            sizes = {"linear_num_heads": 2, "linear_head_dim": 3}
            module = model.KimiLinearDeltaAttention(model.KimiLinearConfig(**found, **sizes), 1)
        else:
            from transformers.models.minimax import modeling_minimax as model

            sizes = {"num_attention_heads": 2, "head_dim": 3, "block_size": 8}
            module = model.MiniMaxLightningAttention(model.MiniMaxConfig(**found, **sizes), 1)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(torch.from_numpy(normal(*parameter.shape, seed=i, size=0.5)))
    return module


def their_params(name: str) -> Params:
    tensors = {key: x.detach() for key, x in theirs(name).named_parameters()}
    return weights.from_format(KINDS[name].layer, tensors, KINDS[name].format)  # type: ignore[arg-type]


def their_out(name: str, x: Any) -> Any:
    if name == "LightningAttention":
        return theirs(name)(x, None, None)[0]
    return theirs(name)(x)


@of_theirs
def test_the_output_is_that_of_transformers(name: str) -> None:
    """They round to float32 inside; the noise is that of these numbers."""
    params, x = their_params(name), torch.from_numpy(X)
    numbers = mapped(lambda a: a.numpy(), params)
    room = ACCEPTANCE * noise(lambda number: KINDS[name].formula(mapped(number, numbers), number(X))[0], 2)
    ours, expected = KINDS[name].layer(params, x), their_out(name, x).detach()
    assert (ours - expected).abs().max() <= room < 1e-4
    wrong = {**params, "w_o": params["w_o"] * (1 + 2.0**-10)}
    assert (KINDS[name].layer(wrong, x) - expected).abs().max() > room


@of_theirs
def test_the_gradients_are_those_of_transformers(name: str) -> None:
    """In float64, but for what they round to float32: as much as the formula itself loses in it, at worst."""
    layer, formula, format = KINDS[name]

    def cotangent(seed: int) -> Any:
        return torch.from_numpy(normal(BATCH, TOKENS, E, seed=seed))

    def gradients(call: Callable[..., Any], dtype: Any, seed: int = 0) -> Params:
        params = mapped(lambda a: a.to(dtype).requires_grad_(), their_params(name))
        x = torch.from_numpy(X).to(dtype).requires_grad_()
        (call(params, x) * cotangent(seed).to(dtype)).sum().backward()
        return {"x": x.grad} | weights.to_format(layer, mapped(lambda a: a.grad, params), format)  # type: ignore[arg-type]

    module, x = theirs(name), torch.from_numpy(X).requires_grad_()
    module.zero_grad()
    (their_out(name, x) * cotangent(0)).sum().backward()
    found = {"x": x.grad} | {key: p.grad for key, p in module.named_parameters()}
    ours = gradients(layer, torch.float64)
    assert ours.keys() == found.keys()
    lost = dict.fromkeys(found, 0.0)
    for seed in range(4):
        wide, rounded = (
            gradients(lambda *given: formula(*given)[0], t, seed) for t in (torch.float64, torch.float32)
        )
        for key, true in wide.items():
            error = (rounded[key] - true).abs().max()
            lost[key] = max(lost[key], float(error), UNIT_ROUNDOFF["float32"] * float(true.abs().max()))
    for key, gradient in found.items():
        assert float(gradient.abs().max()) > 1e-3
        assert float((ours[key] - gradient).abs().max()) <= ACCEPTANCE * lost[key], key


@of_theirs
def test_weights_have_the_shapes_of_transformers(name: str) -> None:
    layer, _, format = KINDS[name]
    params = drawn(layer, seed=4)
    there = weights.to_format(layer, params, format)  # type: ignore[arg-type]
    assert {key: x.shape for key, x in there.items()} == {
        key: tuple(x.shape) for key, x in theirs(name).named_parameters()
    }


def test_the_slopes_are_those_of_minimax() -> None:
    slopes = theirs("LightningAttention").slope_rate.flatten().numpy()
    assert np.abs(slopes - SLOPES).max() <= 8 * 2.0**-53 * max(SLOPES)


# what is drawn, what is refused


@pytest.mark.parametrize("name", ["GatedDeltaNet", "KimiDeltaAttention"])
def test_a_delta_layer_begins_with_steps_between_a_thousandth_and_a_tenth(name: str) -> None:
    layer = KINDS[name].layer
    found = {}
    for library in LIBRARIES:
        bench = bench_of(library)
        params = layer.init(3, like=bench.array(np.zeros(()), "float32"))
        found[library] = {key: bench.numpy(params[key]) for key in ("a_log", "dt_bias", "conv")}
        for key, x in found[library].items():
            assert np.array_equal(x, found["numpy"][key])
    rate, step = np.exp(found["numpy"]["a_log"]), np.logaddexp(found["numpy"]["dt_bias"], 0)
    assert (rate >= 1 - 2.0**-20).all()
    assert (rate <= 16 + 2.0**-16).all()
    assert (step >= 1e-3 * (1 - 2.0**-10)).all()
    assert (step <= 0.1 * (1 + 2.0**-10)).all()
    assert len(set(rate.flatten())) == rate.size


def test_unit_vectors_have_length_one_whatever_the_library() -> None:
    x = normal(3, 5, 7)
    for library in LIBRARIES:
        found = applied(library, lambda p: l2norm(p["x"], epsilon=0.0), {"x": x})
        assert np.abs((found**2).sum(-1) - 1).max() <= 10 * UNIT_ROUNDOFF["float32"]
    np.testing.assert_array_equal(l2norm(np.zeros(3)), np.zeros(3))


DELTA, LINEAR = KINDS["GatedDeltaNet"].layer, KINDS["LinearAttention"].layer
P, Q = drawn(DELTA), drawn(LINEAR)
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "the future": (lambda: LINEAR(Q, X, is_causal=False), ValueError, "layers.LinearAttention: expected is_causal=True, got False; a state holds no later tokens, take MultiHeadAttention"),
    "weights": (lambda: LINEAR.run(Q, X, return_aux=AuxRequest(weights=True)), ValueError, "layers.LinearAttention: expected no return_aux, got AuxRequest(lse=False, weights=True, scores=False, max_sco...; a state has no weights to show"),
    "a seed": (lambda: LINEAR(Q, X, dropout_seed=0.5), TypeError, "layers.LinearAttention: expected dropout_seed to be an integer or a 0-d integer array, got 0.5; pass a Python int"),
    "a mask": (lambda: LINEAR(Q, X, mask=X), TypeError, "layers.LinearAttention: expected arguments among params, x, is_causal, cache, dropout_seed, return_aux, got mask=; leave it out"),
    "another cache": (lambda: LINEAR.run(Q, X, cache=layers.MultiHeadAttention(8, 2).empty_cache(2, 3, like=X)), TypeError, "layers.LinearAttention: expected a RecurrentCache, got a KVCache; write cache=layer.empty_cache(batch, capacity, like=x)"),
    "a cache of another kind": (lambda: DELTA.run(P, X, cache=LINEAR.empty_cache(2, 3, like=X)), ValueError, "layers.GatedDeltaNet: expected a cache whose state ends in (4, 3, 5) and tail in (3, 32), got (2, 4, 5) and (0, 0); write cache=layer.empty_cache(batch, capacity, like=x)"),
    "a cache of another batch": (lambda: LINEAR.run(Q, X, cache=LINEAR.empty_cache(3, 3, like=X)), ValueError, "layers.LinearAttention: expected state of shape (2, 2, 4, 5), got (3, 2, 4, 5); query is (2, 2, 21, 4), in axes (..., heads, tokens, width)"),
    "a capacity": (lambda: LINEAR.empty_cache(2, -1, like=X), ValueError, "layers.LinearAttention.empty_cache: expected capacity >= 0, got -1; pass a larger number"),
    "heads": (lambda: layers.LinearAttention(8, 3), ValueError, "layers.LinearAttention: expected num_heads to divide embed_dim, got embed_dim=8 and num_heads=3; change one of them, or give head_dim"),
    "chunk_size": (lambda: layers.LinearAttention(8, 2, chunk_size=0), ValueError, "layers.LinearAttention: expected chunk_size to be a positive int, got 0; give a size of at least 1"),
    "value heads": (lambda: layers.GatedDeltaNet(8, 2, head_dim=3, num_value_heads=3), ValueError, "layers.GatedDeltaNet: expected num_heads to divide num_value_heads, got num_heads=2 and num_value_heads=3; each head of keys serves equally many heads of values"),
    "kernel_size": (lambda: layers.KimiDeltaAttention(8, 2, head_dim=3, kernel_size=0), ValueError, "layers.KimiDeltaAttention: expected kernel_size to be a positive int, got 0; give a size of at least 1"),
    "slopes": (lambda: layers.LightningAttention(8, 2, slopes=(0.5,)), ValueError, "layers.LightningAttention: expected slopes of 2 numbers of at least 0, got (0.5,); write slopes=lightning_slopes(2, layer, depth)"),
    "slopes in a list": (lambda: layers.LightningAttention(8, 2, slopes=[0.5, 0.5]), TypeError, "layers.LightningAttention: expected slopes to be a tuple, got [0.5, 0.5]; pass one"),  # type: ignore[arg-type]
    "a slope that grows": (lambda: layers.LightningAttention(8, 2, slopes=(0.5, -0.5)), ValueError, "layers.LightningAttention: expected slopes of 2 numbers of at least 0, got (0.5, -0.5); write slopes=lightning_slopes(2, layer, depth)"),
    "a layer beyond": (lambda: lightning_slopes(2, layer=3, depth=3), ValueError, "linear.lightning_slopes: expected layer <= 2, got 3; count layers from 0"),
    "an epsilon": (lambda: l2norm(X, epsilon="1"), TypeError, "linear.l2norm: expected epsilon to be a Python number, got '1'; pass a Python float"),  # type: ignore[arg-type]
    "a batch": (lambda: RecurrentCache.empty(-1, 1, 1, like=X), ValueError, "caches.RecurrentCache.empty: expected batch >= 0, got -1; pass a larger number"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_in_a_sentence(what: str) -> None:
    call, kind, sentence = REFUSED[what]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value) == f"polyattn.{sentence}"
