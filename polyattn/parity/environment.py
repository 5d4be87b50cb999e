"""What a comparison ran on: versions, devices, threads, and the flags that change numbers."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

__all__ = ["environment"]


_LIBRARIES = ("polyattn", "numpy", "array_api_strict", "jax", "jaxlib", "torch", "onnxruntime", "flax", "equinox", "keras")  # fmt: skip


def environment() -> dict[str, str]:
    """Facts by name, of the libraries that are loaded; nothing is imported for it."""
    facts = {
        "Python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}",
    }
    for name in _LIBRARIES:
        if (module := sys.modules.get(name)) is not None and hasattr(module, "__version__"):
            facts[name] = str(module.__version__)
    if (jax := sys.modules.get("jax")) is not None:
        facts["JAX devices"] = ", ".join(str(device) for device in jax.devices())
        facts["JAX default matmul precision"] = str(jax.config.jax_default_matmul_precision or "default")
        facts["JAX x64"] = "on" if jax.config.jax_enable_x64 else "off"
    if (torch := sys.modules.get("torch")) is not None:
        facts["PyTorch threads"] = str(torch.get_num_threads())
        facts["PyTorch float32 matmul precision"] = torch.get_float32_matmul_precision()
        facts["PyTorch CUDA"] = _cuda(torch)
    return facts


def _cuda(torch: Any) -> str:
    if not torch.cuda.is_available():
        return "none"
    return f"{torch.cuda.get_device_name()}, TF32 {'on' if torch.backends.cuda.matmul.allow_tf32 else 'off'}"
