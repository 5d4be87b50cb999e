"""Chips to compile for on a machine that has none of them: TPU v5e, v5p and v6e, and the H100.

    import polyattn
    from polyattn_jax.targets import target

    chip = target("v5e")
    q = chip.shape((1, 8, 32768, 128), "bfloat16")
    print(chip.compile(lambda q, k, v: polyattn.attention(q, k, v, is_causal=True), q, q, q))

Under `jax.sharding.use_abstract_mesh(chip.mesh)` a program is traced for the chip; for that nothing needs to be
installed. To compile it does: pip install 'polyattn[jax,aot]', and in the environment of the process JAX_PLATFORMS=cpu
and ALLOW_MULTIPLE_LIBTPU_LOAD=1, without which one process at a time may load the compiler of the TPU.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.util import find_spec
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from polyattn.calls import shown

__all__ = ["TARGETS", "Compiled", "Target", "target"]

GIB = 2**30


@dataclass(frozen=True)
class Compiled:
    """What the compiler says of a program for one chip; sizes in bytes."""

    seconds: float  # to lower and compile
    program: int  # lines of the lowered program, each an operation
    arguments: int
    outputs: int
    temporaries: int
    memory: int  # what a program may have of the chip's
    why_not: str | None = (
        None  # what the compiler says against it, memory aside; then there are no temporaries
    )

    @property
    def needs(self) -> int:
        """Bytes of everything at once."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def fits(self) -> bool:
        return self.why_not is None and self.needs <= self.memory

    def __str__(self) -> str:
        if self.why_not is not None:
            return f"does not compile: {self.why_not}"
        if not self.fits:
            return f"does not fit: needs {self.needs / GIB:.1f} of {self.memory / GIB:.2f} GiB"
        large = self.temporaries >= GIB
        size = f"{self.temporaries / (GIB if large else 2**20):.1f} {'GiB' if large else 'MiB'}"
        return f"{size} of temporaries, compiled in {self.seconds:.1f} s"


@dataclass(frozen=True)
class Target:
    """A chip that programs are compiled for."""

    name: str
    title: str
    platform: str  # as devices of JAX have it
    kind: str
    cores: int
    memory: int  # bytes that a program may have
    topology: tuple[tuple[str, str], ...]  # for `topologies.get_topology_desc`
    packages: tuple[tuple[str, str], ...]  # a module that compiles for it, and the package that has it
    options: tuple[tuple[str, str], ...] = ()  # of the compiler

    @property
    def mesh(self) -> AbstractMesh:
        """One chip, for `jax.sharding.use_abstract_mesh`: what is traced below is traced for this chip."""
        said = {"device_kind": self.kind, "num_cores": self.cores, "platform": self.platform}
        known = {field.name for field in fields(AbstractDevice)}  # no platform in JAX 0.9
        device = AbstractDevice(**{name: value for name, value in said.items() if name in known})
        return AbstractMesh((1,), ("chip",), abstract_device=device)

    @cached_property
    def device(self) -> Any:
        """The chip as a device that programs are compiled for and that runs nothing."""
        for module, package in self.packages:
            if not _installed(module):
                raise ModuleNotFoundError(
                    f"polyattn_jax.targets: expected the package {package}, with which JAX compiles for the "
                    f"{self.title}, got an environment without it; pip install 'polyattn[jax,aot]'",
                    name=module,
                )
        try:
            return topologies.get_topology_desc(**dict(self.topology)).devices[0]
        except (RuntimeError, NotImplementedError) as error:
            raise RuntimeError(
                f"polyattn_jax.targets: expected JAX to describe the {self.title}, got: {first_line(error)}; set "
                "JAX_PLATFORMS=cpu and ALLOW_MULTIPLE_LIBTPU_LOAD=1 before the process starts"
            ) from error

    def shape(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        """An array on the chip, without its numbers."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(self.device))

    def compile(self, f: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> Compiled:
        """f compiled for the chip. What f itself raises is raised; what the compiler raises is said in the result."""
        for x in shapes:  # JAX compiles for the chip that it finds on the shapes
            if getattr(x.sharding, "device_set", None) != {self.device}:
                raise ValueError(
                    f"polyattn_jax.targets: Target.compile: expected shapes on the {self.title}, got one on "
                    f"{shown(x.sharding)}; make them with its method shape"
                )
        with jax.sharding.use_abstract_mesh(self.mesh):
            traced = jax.jit(f).trace(*shapes)
            arguments, outputs = (_bytes(jax.tree.leaves(tree)) for tree in (shapes, traced.out_info))
            started, program, temporaries, why_not = time.perf_counter(), 0, 0, None
            try:
                lowered = traced.lower()
                program = lowered.as_text().count("\n")
                memory = lowered.compile(compiler_options=dict(self.options)).memory_analysis()
                temporaries, outputs = memory.temp_size_in_bytes, memory.output_size_in_bytes
                outputs -= memory.alias_size_in_bytes
            except Exception as error:  # Mosaic and Triton have errors of many kinds
                if (asked := _too_much(error)) is None:
                    why_not = first_line(error)
                else:
                    temporaries = asked
            seconds = time.perf_counter() - started
        return Compiled(seconds, program, arguments, outputs, temporaries, self.memory, why_not)


def target(name: str) -> Target:
    """The chip of a name: "v5e", "v5p", "v6e" or "h100"."""
    if name not in TARGETS:
        raise ValueError(
            f"polyattn_jax.targets.target: expected name to be one of {', '.join(map(repr, TARGETS))}, got "
            f"{shown(name)}; these are the chips that programs are compiled for without one"
        )
    return TARGETS[name]


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even its parent
        return False


def _bytes(arrays: list[Any]) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)


def first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {line}"[:300].rstrip(" .")


def _too_much(error: Exception) -> int | None:
    """The bytes of temporaries for which the compiler of the TPU refused a program; None if that is not why it did."""
    found = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM", str(error))
    if found is None:
        return None
    return int(float(found[1]) * 2 ** (10 * "KMGT".index(found[2]) + 10 if found[2] else 0))


def _tpu(name: str, kind: str, cores: int, gib: float, topology: str) -> Target:
    return Target(
        name,
        f"TPU {name}",
        "tpu",
        kind,
        cores,
        int(gib * GIB),  # what its compiler says is available
        (("platform", "tpu"), ("topology_name", topology)),
        (("libtpu", "libtpu"),),
    )


_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  device_memory_size: 84978434048 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""

#: name -> the chip
TARGETS = {
    "v5e": _tpu("v5e", "TPU v5 lite", 1, 15.75, "v5e:2x2"),
    "v5p": _tpu("v5p", "TPU v5", 2, 95.74, "v5p:2x2x1"),
    "v6e": _tpu("v6e", "TPU v6 lite", 1, 31.25, "v6e:2x2"),
    "h100": Target(
        "h100",
        "H100",
        "gpu",
        "NVIDIA H100 80GB HBM3",
        132,
        84978434048,
        (("platform", "cuda"), ("topology", "1x1x1"), ("target_config", _H100)),
        (
            ("jax_plugins.xla_cuda12", "jax-cuda12-pjrt"),
            ("jax_cuda12_plugin", "jax-cuda12-plugin"),
            ("nvidia.cuda_nvcc", "nvidia-cuda-nvcc-cu12"),
        ),
        (("xla_gpu_autotune_level", "0"),),  # which times kernels on the chip
    ),
}
