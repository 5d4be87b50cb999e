"""What torch.compile makes of blocks in a process that has computed nothing yet: nothing is remembered, no cache warm."""

from __future__ import annotations

import subprocess
import sys

from shared.libraries import torch

#: One whose attention makes parts of its own, and one that shares what it makes.
PROGRAM = """
import torch
from polyattn import layers, masks
from polyattn.rotary import Rotary

norm, mlp = layers.RMSNorm(8, epsilon=1e-6), layers.MLP(8, 12, activation="swiglu")
latents = {"kv_lora_rank": 4, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 3, "q_lora_rank": 5}
latent = layers.LatentAttention(8, 2, **latents, epsilon=1e-6, rotary=Rotary(interleaved=True), is_causal=True)
near = layers.MultiHeadAttention(8, 4, num_kv_heads=2, rotary=Rotary(), mask=masks.sliding_window(3))
blocks = [layers.EncoderBlock(part, mlp, norm, norm_first=True) for part in (latent, near)]
x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
for layer in (blocks[0], layers.Encoder(blocks[1], 2, kv_from=(None, 0), final_norm=norm)):
    torch.compiler.reset()
    params = layer.init(0, like=x)
    out = torch.compile(lambda p, x, layer=layer: layer(p, x), fullgraph=True, backend="aot_eager")(params, x)
    print(float((out - layer(params, x)).abs().max()), float(out.abs().max()))
"""


def test_a_block_that_torch_compiles_cold_gives_what_it_gives_eagerly() -> None:
    """The compiled program has the operations of the eager one: the same bits, but for sums that are taken anew."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [[float(x) for x in line.split()] for line in done.stdout.splitlines()]
    assert len(found) == 2
    assert all(apart <= 64 * torch.finfo(torch.float32).eps * size for apart, size in found)
