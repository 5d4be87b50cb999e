"""Attention over several devices: inside jax.shard_map every device computes its part, as one device would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
from shared.running import mapped, normal

from polyattn import weights
from polyattn.parity import Spec, eta
from polyattn.truth import truth
from polyattn.truth.definition import Judged
from polyattn.truth.spec import Floats

# JAX counts its devices once, when it starts: a process of its own has two.
SCRIPT = """
import sys

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from polyattn import Blockwise, Fused, attention, weights
from polyattn.linear import linear_attention

assert jax.device_count() == 2
folder = sys.argv[1]
given = weights.load(f"{folder}/given.npz", like=jnp.zeros(()))
found = {}


def over_devices(name, f, arrays, specs, spec, kind=AxisType.Auto, **options):
    \"\"\"The result and the gradients of f, whose arrays lie on the devices as `specs` and `spec` say.\"\"\"
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))

    def place(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    run = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=spec, **options))
    out, pull = jax.vjp(run, *map(place, arrays, specs))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, spec), out.ndim)
    gradients = pull(place(given["d_out"], spec))
    found[name] = {"out": out} | dict(zip(("dq", "dk", "dv", "dsinks"), gradients))


def attend(implementation, first=lambda q: 0):
    def call(q, k, v, sinks):
        options = {"is_causal": True, "query_offset": first(q), "implementation": implementation}
        return attention(q, k, v, sinks=sinks, **options)

    return call


def first_row(q):
    return jax.lax.axis_index("d") * q.shape[2]


every, batch, heads, rows = P(), P("d"), P(None, "d"), P(None, None, "d")
q, k, v, sinks = (given[name] for name in ("q", "k", "v", "sinks"))
tiles = Blockwise(7, 5)
kernel = Fused(7, 5, platform="tpu", interpret=True)
for name, implementation in {"reference": "reference", "blockwise": tiles, "fused": kernel}.items():
    f = attend(implementation)
    over_devices(f"batch {name}", f, (q, k, v, sinks), (batch, batch, batch, every), batch)
    over_devices(f"heads {name}", f, (q, k, v, sinks), (heads, heads, heads, P("d")), heads)
    over_devices(f"shared {name}", f, (q, k[:, :1], v[:, :1], sinks), (heads, every, every, P("d")), heads)
    f = attend(implementation, first_row)
    over_devices(f"rows {name}", f, (q, k, v, sinks), (rows, every, every, every), rows)
specs = (batch, batch, batch, every)
over_devices("batch explicit", attend(tiles), (q, k, v, sinks), specs, batch, AxisType.Explicit)
over_devices("batch unchecked", attend(tiles), (q, k, v, sinks), specs, batch, check_vma=False)
linear = lambda q, k, v: linear_attention(q, k, v, scale=1.0, chunk_size=7)[0]
over_devices("batch linear", linear, (q, k, v), specs[:3], batch)
weights.save(found, f"{folder}/found.npz")
"""
Found = dict[str, dict[str, Floats]]
GIVEN = {
    "q": normal(2, 4, 26, 4, seed=1),
    "k": normal(2, 2, 26, 4, seed=2),
    "v": normal(2, 2, 26, 4, seed=3),
    "sinks": normal(4),
    "d_out": normal(2, 4, 26, 4, seed=4),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("sharding")
    weights.save(mapped(np.float32, GIVEN), folder / "given.npz")
    own = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env={**os.environ, **own},
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    results: Found = weights.load(folder / "found.npz", like=np.zeros(()))
    return results


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        *(
            f"{axis} {which}"
            for axis in ("batch", "heads", "rows")
            for which in ("reference", "blockwise", "fused")
        ),
        "batch explicit",
        "batch unchecked",
    ],
)
def test_every_implementation_and_its_gradients_work_inside_shard_map(how: str, found: Found) -> None:
    judge(found[how], kv_heads=2)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["reference", "blockwise", "fused"])
def test_a_kv_head_that_every_device_reads_gets_the_sum_of_its_gradients(which: str, found: Found) -> None:
    judge(found[f"shared {which}"], kv_heads=1)


def judge(results: Mapping[str, Floats], kv_heads: int) -> None:
    q, k, v, sinks, d_out = (GIVEN[name] for name in ("q", "k", "v", "sinks", "d_out"))
    allowed = np.tril(np.ones((26, 26), bool))[None, None]
    true = truth(Spec(q, k[:, :kv_heads], v[:, :kv_heads], allowed=allowed, sinks=sinks), d_out)
    assert set(results) == {"out", "dq", "dk", "dv", "dsinks"}
    for name, x in results.items():
        assert eta(x, true[name], "float32") <= 4, name


@pytest.mark.slow
def test_linear_attention_works_inside_shard_map(found: Found) -> None:
    q, k, v, d_out = (GIVEN[name] for name in ("q", "k", "v", "d_out"))
    q, d_out = (np.reshape(x, (2, 2, 2, 26, 4)) for x in (q, d_out))  # query heads by their kv head

    def both(w: Floats, d_out: Floats, v: Floats) -> tuple[Floats, Floats]:
        """The outputs, and the gradient of v."""
        return np.reshape(w @ v[:, :, None], (2, 4, 26, 4)), np.sum(w.mT @ d_out, axis=2)

    true = both(np.tril(q @ k[:, :, None].mT), d_out, v)
    condition = both(np.tril(np.abs(q) @ np.abs(k)[:, :, None].mT), np.abs(d_out), np.abs(v))
    for name, value, c in zip(("out", "dv"), true, condition, strict=True):
        assert eta(found["batch linear"][name], Judged(value, c), "float32") <= 4, name
