"""Layers as modules of PyTorch, Flax nnx and Equinox: the same functions, with parameters of their own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from polyattn_jax import equinox_module, nnx_module
from polyattn_torch import Module
from shared.running import Floats, mapped, normal

from polyattn import AuxRequest, layers, masks
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise

BLOCK = layers.EncoderBlock.preset("torch", 8, 2, 12, dropout_rate=0.5)
X = normal(2, 5, 8)
T = torch.from_numpy(X).float()
J = jnp.asarray(X, jnp.float32)

LAYERS = [
    BLOCK,
    layers.Encoder(layers.EncoderBlock.preset("flax", 8, 2, 12), 2),
    layers.MultiHeadAttention(8, 2, rotary=Rotary(), qk_norm=layers.RMSNorm(4, epsilon=1e-6), is_causal=True),
    layers.AdditiveAttention(8, 6, dropout_rate=0.5),
    layers.LuongAttention(8, score="dot"),  # without parameters
]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {path[1:]: tree}
    return {name: x for part in tree for name, x in flat(tree[part], f"{path}.{part}").items()}


# PyTorch


@every_layer
def test_a_module_is_its_layer_bit_for_bit(layer: Any) -> None:
    module = Module(layer, seed=3).eval()
    params = layer.init(3, like=torch.zeros(()))
    assert torch.equal(module(T), layer(params, T))
    assert {name: tuple(x.shape) for name, x in module.state_dict().items()} == flat(layer.shapes())
    assert all(torch.equal(x, flat(params)[name]) for name, x in module.state_dict().items())


def test_a_module_takes_what_its_layer_takes() -> None:
    layer = layers.MultiHeadAttention(8, 2)
    module = Module(layer)
    params = module.params()
    mask = masks.key_lengths(torch.tensor([5, 2]))
    out, cache, aux = module.run(
        T, T[:, :3], mask=masks.key_lengths(torch.tensor([3, 2])), return_aux=AuxRequest(lse=True)
    )
    assert (out.shape, cache, aux.lse.shape) == ((2, 5, 8), None, (2, 2, 5))
    assert torch.equal(module(x=T, mask=mask), layer(params, T, mask=mask))
    out, cache, aux = module.run(T, is_causal=True, cache=layer.empty_cache(2, 6, like=T))
    assert torch.equal(out, layer.run(params, T, is_causal=True, cache=layer.empty_cache(2, 6, like=T)).out)
    assert (cache.length, aux) == (5, None)


def test_a_state_dict_makes_the_same_module_again() -> None:
    first, second = Module(BLOCK, seed=1).eval(), Module(BLOCK, seed=2).eval()
    assert not torch.equal(first(T), second(T))
    assert not second.load_state_dict(first.state_dict()).missing_keys
    assert torch.equal(first(T), second(T))
    with pytest.raises(RuntimeError, match=r"attention\.w_q"):
        second.load_state_dict({name: x for name, x in first.state_dict().items() if name != "attention.w_q"})


def test_in_eval_mode_nothing_is_dropped() -> None:
    module = Module(BLOCK).eval()
    assert torch.equal(module(T), module(T))
    without = Module(layers.EncoderBlock.preset("torch", 8, 2, 12, dropout_rate=0.0)).eval()
    without.load_state_dict(module.state_dict())
    assert torch.equal(module(T), without(T))
    assert torch.equal(without.train()(T), without.eval()(T))


def test_training_drops_again_after_evaluation() -> None:
    module = Module(BLOCK)
    assert module.training
    for _ in range(2):
        assert not torch.equal(module.train()(T), module(T))
        assert torch.equal(module.eval()(T), module(T))


@pytest.mark.parametrize("keyword", [False, True], ids=["x", "x=x"])
def test_dropout_follows_the_generator_of_pytorch_or_the_seed_given(keyword: bool) -> None:
    module = Module(BLOCK)

    def drop(seed: int | None = None, given: int | None = None) -> torch.Tensor:
        if seed is not None:
            torch.manual_seed(seed)
        out: torch.Tensor = module(x=T, dropout_seed=given) if keyword else module(T, dropout_seed=given)
        return out

    assert torch.equal(drop(0), drop(0))
    assert not torch.equal(drop(0), drop(1))
    assert torch.equal(drop(0, 7), drop(1, 7))
    assert torch.equal(drop(given=7), BLOCK(module.params(), T, dropout_seed=7))


def test_a_dropout_seed_in_eval_mode_is_refused() -> None:
    with pytest.raises(ValueError) as caught:
        Module(BLOCK).eval()(T, dropout_seed=7)
    assert str(caught.value) == (
        "polyattn_torch.Module: expected no dropout_seed in eval mode, got one; call module.train() first"
    )


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(TypeError) as caught:
        Module(torch.nn.Linear(2, 2))
    assert str(caught.value) == (
        "polyattn_torch.Module: expected a layer of polyattn.layers, got Linear; for example "
        "polyattn.layers.MultiHeadAttention(512, 8)"
    )


def test_the_seed_decides_the_parameters_and_the_generator_does_not() -> None:
    torch.manual_seed(0)
    first, other = Module(BLOCK, seed=5), Module(BLOCK, seed=6)
    torch.manual_seed(1)
    again = Module(BLOCK, seed=5)
    assert torch.equal(first.attention.w_q, again.attention.w_q)
    assert not torch.equal(first.attention.w_q, other.attention.w_q)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_module_moves_to_another_dtype(dtype: torch.dtype) -> None:
    module = Module(BLOCK, seed=1).to(dtype).eval()
    assert module(T.to(dtype)).dtype == dtype
    made = Module(BLOCK, seed=1, dtype=dtype).eval()
    assert {x.dtype for x in made.parameters()} == {dtype}
    if dtype == torch.bfloat16:  # float32 numbers rounded, however one gets there
        assert torch.equal(made(T.to(dtype)), module(T.to(dtype)))


@pytest.mark.parametrize(
    ("layer", "training"),
    [(layers.MultiHeadAttention(8, 2, dropout_rate=0.5), False), (BLOCK, True)],
    ids=["eval", "train"],
)
def test_a_compiled_module_is_the_eager_one(layer: Any, training: bool) -> None:
    """As close to float64 as 4 x what eager float32 is, and no closer than a rounding of the largest entry."""
    torch.compiler.reset()
    module = Module(layer, seed=1).train(training)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for f, x in ((module, T), (compiled, T), (module.double, T.double())):
        call = f() if f == module.double else f
        torch.manual_seed(4)  # of dropout
        module.zero_grad()
        out = call(x)
        (out * x).sum().backward()
        gradients = {name: p.grad.clone().double() for name, p in module.named_parameters()}
        found.append({"out": out.detach().double()} | gradients)
    eager, ours, true = found
    for name, x in true.items():
        error = max((eager[name] - x).abs().max(), 2.0**-24 * x.abs().max())
        assert (ours[name] - x).abs().max() <= 4 * error, name


def test_a_module_made_on_the_meta_device_can_be_filled_later() -> None:
    layer = LAYERS[1]
    module = Module(layer, seed=3, device="meta")
    assert all(x.is_meta for x in module.parameters())
    module.to_empty(device="cpu")
    module.reset_parameters()
    assert torch.equal(module.eval()(T), Module(layer, seed=3).eval()(T))


def test_reset_parameters_goes_back_to_the_beginning() -> None:
    module = Module(BLOCK, seed=3)
    parameters = list(module.parameters())
    with torch.no_grad():
        for p in parameters:
            p.add_(1.0)
    module.reset_parameters()
    assert all(a is b for a, b in zip(parameters, module.parameters(), strict=True))
    fresh = Module(BLOCK, seed=3).state_dict()
    assert all(torch.equal(x, fresh[name]) for name, x in module.state_dict().items())


def test_a_deep_copy_has_parameters_of_its_own() -> None:
    module = Module(BLOCK, seed=1).eval()
    other = copy.deepcopy(module)
    before = module(T)
    assert torch.equal(other(T), before)
    with torch.no_grad():
        other.attention.w_o.zero_()
    assert torch.equal(module(T), before)
    assert not torch.equal(other(T), before)


def test_an_optimizer_trains_a_module() -> None:
    module = Module(LAYERS[1], seed=1)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        loss = (module(T) - T.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_the_text_of_a_module_names_its_layer() -> None:
    assert (
        repr(Module(layers.RMSNorm(2, epsilon=1e-5)))
        == "Module(RMSNorm(dim=2, epsilon=1e-05, use_scale=True))"
    )


# JAX


def room(layer: Any) -> float:
    params = layer.init(3, like=np.zeros(()))
    return 4 * noise(lambda number: layer(mapped(number, params), number(X)))


def truth(layer: Any) -> Floats:
    out: Floats = layer(layer.init(3, like=np.zeros(())), X)
    return out


@every_layer
def test_an_nnx_module_is_its_layer(layer: Any) -> None:
    from flax import nnx

    module = nnx_module(layer, seed=3)
    names = {".".join(path) for path, _ in nnx.to_flat_state(nnx.state(module, nnx.Param))}
    assert names == {name for name, x in flat(layer.shapes()).items() if x}
    out = nnx.jit(lambda module, x: module(x))(module, J)
    # init rounds the same numbers to float32, which is an operation more
    assert np.abs(np.asarray(out) - truth(layer)).max() <= 2 * room(layer) < 1e-4


def test_nnx_sees_every_parameter_in_grad_and_in_an_optimizer() -> None:
    import optax
    from flax import nnx

    layer = layers.AdditiveAttention(8, 6, dropout_rate=0.5)
    module, params = nnx_module(layer, seed=3), layer.init(3, like=J)

    def loss(call: Any, x: Any) -> Any:
        return ((call(x, dropout_seed=1) - x[:, ::-1]) ** 2).mean()

    @nnx.jit
    def step(module: Any, optimizer: Any, x: Any) -> Any:
        gradients = nnx.grad(loss)(module, x)
        optimizer.update(module, gradients)
        return gradients

    gradients = nnx.to_pure_dict(step(module, nnx.Optimizer(module, optax.sgd(0.5), wrt=nnx.Param), J))
    plain = jax.jit(jax.grad(lambda p: loss(lambda x, **options: layer(p, x, **options), J)))(params)
    assert gradients.keys() == plain.keys()
    for name, gradient in plain.items():
        assert np.array_equal(gradients[name], gradient), name
        assert np.abs(gradient).max() > 0
        moved = np.asarray(params[name]) - np.float32(0.5) * np.asarray(gradient)
        # XLA may fuse the product and the difference: one rounding or two
        assert np.abs(np.asarray(getattr(module, name)) - moved).max() <= 2.0**-24 * np.abs(moved).max()


def test_nnx_takes_the_dtype_and_splits_and_merges() -> None:
    from flax import nnx

    module, x = nnx_module(layers.Linear(8, 3), dtype=jnp.bfloat16), J.astype(jnp.bfloat16)
    assert module(x).dtype == jnp.bfloat16
    graph, state = nnx.split(module)
    assert np.array_equal(nnx.merge(graph, state)(x), module(x))


@every_layer
def test_an_equinox_module_is_its_layer(layer: Any) -> None:
    import equinox as eqx

    module = equinox_module(layer, seed=3)
    out = eqx.filter_jit(module)(J)
    assert np.abs(np.asarray(out) - truth(layer)).max() <= 2 * room(layer) < 1e-4
    assert jax.tree.structure(module.params) == jax.tree.structure(layer.init(3, like=J))


def test_equinox_differentiates_and_maps_a_module() -> None:
    import equinox as eqx

    layer = layers.AdditiveAttention(8, 6)
    module = equinox_module(layer, seed=3)
    gradients = eqx.filter_jit(eqx.filter_grad(lambda module, x: (jax.vmap(module)(x) ** 2).mean()))(
        module, J
    )
    mapped_layer = jax.vmap(layer, (None, 0))
    plain = jax.jit(jax.grad(lambda p: (mapped_layer(p, J) ** 2).mean()))(layer.init(3, like=J))
    assert gradients.layer == layer
    assert gradients.params.keys() == plain.keys()
    assert all(np.array_equal(x, plain[name]) for name, x in gradients.params.items())
    params, static = eqx.partition(module, eqx.is_array)
    assert len(jax.tree.leaves(params)) == 3
    assert eqx.tree_equal(eqx.combine(params, static), module)
    assert equinox_module(layer, dtype=jnp.bfloat16).params["w_q"].dtype == jnp.bfloat16


@pytest.mark.parametrize("make", [Module, nnx_module, equinox_module])
def test_run_of_a_module_is_run_of_its_layer(make: Callable[..., Any]) -> None:
    layer, x = layers.CausalSelfAttention(8, 2, context_length=5, sinks=True), T if make is Module else J
    module, params = make(layer, seed=3), layer.init(3, like=x)
    options = {"cache": layer.empty_cache(2, 6, like=x), "return_aux": AuxRequest(lse=True)}
    found, plain = module.run(x, **options), layer.run(params, x, **options)
    assert type(found) is layers.LayerResult
    assert np.array_equal(np.asarray(found.out.tolist()), np.asarray(plain.out.tolist()))
    assert np.array_equal(np.asarray(found.aux.lse.tolist()), np.asarray(plain.aux.lse.tolist()))
    assert found.cache.length == 5
    with pytest.raises(TypeError, match="expected neither cache nor return_aux in a call"):
        module(x, **options)


@pytest.mark.parametrize("make", [nnx_module, equinox_module])
def test_two_modules_of_one_layer_are_trees_of_one_structure(make: Callable[..., Any]) -> None:
    layer = layers.Encoder(layers.EncoderBlock.preset("flax", 8, 2, 12), 2)
    first, second = make(layer, seed=0), make(layer, seed=1)
    assert type(first) is type(second)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    found = [jax.tree.leaves(x) for x in (first, second, mean)]
    assert len(found[0]) > 1
    assert all(np.array_equal(c, (a + b) / 2) for a, b, c in zip(*found, strict=True))
    other = make(layers.Encoder(layers.EncoderBlock.preset("flax", 8, 4, 12), 2))
    assert jax.tree.structure(first) != jax.tree.structure(other)


@pytest.mark.parametrize("framework", ["nnx", "equinox"])
def test_two_modules_of_one_layer_are_traced_once(framework: str) -> None:
    import equinox as eqx
    from flax import nnx

    jit, make = (nnx.jit, nnx_module) if framework == "nnx" else (eqx.filter_jit, equinox_module)
    traces = []

    @jit
    def run(module: Any, x: Any) -> Any:
        traces.append(None)
        return module(x)

    layer = layers.AdditiveAttention(8, 6)
    outputs = [run(make(layer, seed=seed), J) for seed in (0, 1)]
    assert len(traces) == 1
    assert not np.array_equal(*outputs)
    run(make(layers.AdditiveAttention(8, 5)), J)
    assert len(traces) == 2


@pytest.mark.parametrize("make", [nnx_module, equinox_module])
def test_a_module_can_be_pickled(make: Callable[..., Any]) -> None:
    module = make(layers.MultiHeadAttention(8, 2), seed=3)
    again = pickle.loads(pickle.dumps(module))
    assert type(again) is type(module)
    assert again.layer == module.layer
    assert np.array_equal(again(J), module(J))
