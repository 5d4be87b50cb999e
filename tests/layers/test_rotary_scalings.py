"""Scaled frequencies against those of transformers, as functions and as the modules of models that have them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from shared.libraries import jax, jnp, torch
from shared.running import LIBRARIES, bench_of, normal

from polyattn import weights
from polyattn.rotary import DynamicNTK, Linear, Llama3, LongRoPE, Proportional, Rotary, Scaling, YaRN

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
WIDTH, BASE = 64, 500_000.0
#: float32 powers round their exponent, by ln(base) units; the ramps and divisions of transformers a few times more.
FEW = (math.log(BASE) + 16) * 2.0**-24
SHORT = tuple(1.0 + i / 64 for i in range(32))
LONG = tuple(1.0 + i for i in range(32))

ROWS: dict[str, tuple[dict[str, Any], Scaling, int | None]] = {
    "linear": ({"rope_type": "linear", "factor": 4.0}, Linear(4.0), None),
    "dynamic, short": ({"rope_type": "dynamic", "factor": 4.0}, DynamicNTK(4.0, 4096), 100),
    "dynamic, long": ({"rope_type": "dynamic", "factor": 4.0}, DynamicNTK(4.0, 4096), 10_000),
    "llama3": (
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024},
        Llama3(8.0, 1.0, 4.0, 1024), None,
    ),
    "yarn": ({"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048}, YaRN(16.0, 2048), None),
    "yarn of gpt-oss": (
        {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096},
        YaRN(32.0, 4096, truncate=False), None,
    ),
    "yarn of DeepSeek": (
        {"rope_type": "yarn", "factor": 40.0, "beta_fast": 16, "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096},
        YaRN(40.0, 4096, 16, 2, mscale=0.707, mscale_all_dim=1.0), None,
    ),
    "yarn with a factor of its own": (
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.5, "original_max_position_embeddings": 64},
        YaRN(4.0, 64, attention_factor=1.5), None,
    ),
    "longrope, short": (
        {"rope_type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG), "original_max_position_embeddings": 1024, "factor": 4.0},
        LongRoPE(SHORT, LONG, 1024, 4.0), 1024,
    ),
    "longrope, long": (
        {"rope_type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG), "original_max_position_embeddings": 1024, "factor": 4.0},
        LongRoPE(SHORT, LONG, 1024, 4.0), 1025,
    ),
    "proportional": ({"rope_type": "proportional", "partial_rotary_factor": 0.25}, Proportional(0.25), None),
}  # fmt: skip


def llama(**parameters: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=2 * WIDTH,
        num_attention_heads=2,
        max_position_embeddings=4096,
        rope_parameters={"rope_theta": BASE, **parameters},
    )


@pytest.mark.parametrize("row", ROWS)
def test_frequencies_and_amplitude_are_those_of_transformers(row: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters, scaling, length = ROWS[row]
    config = llama(**parameters)
    theirs, amplitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu", seq_len=length)
    ours = Rotary(base=BASE, scaling=scaling)
    off = np.abs(np.array(ours.frequencies(WIDTH, length=length)) - theirs.double().numpy())
    plain = np.array(Rotary(base=BASE).frequencies(WIDTH))
    assert (off <= FEW * plain).all()
    assert scaling.amplitude == pytest.approx(amplitude, rel=4 * 2.0**-53)
    assert Rotary.from_config(config) == ours
    if scaling != DynamicNTK(4.0, 4096) or length != 100:
        assert (np.abs(theirs.double().numpy() - plain) > 1e-3 * plain).any()  # and not what they are without


def cos_and_sin(rotary: Rotary, positions: Any, **options: Any) -> tuple[Any, Any]:
    """What a pair (1, 0) becomes."""
    out = rotary(
        np.concatenate([np.ones((len(positions), 32)), np.zeros((len(positions), 32))], -1),
        positions,
        **options,
    )
    return out[:, :32], out[:, 32:]


def modules() -> dict[str, tuple[Any, Any, dict[str, Any]]]:
    from transformers import DeepseekV3Config, GptOssConfig, LlamaConfig, Phi3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    sizes = {"hidden_size": 2 * WIDTH, "num_attention_heads": 2}
    long = {"type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG)}
    rope = {
        "rope_type": "yarn",
        "factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "rope_theta": 1e4,
        "beta_fast": 32,
        "beta_slow": 1,
    }
    phi = Phi3Config(
        **sizes,
        max_position_embeddings=4096,
        original_max_position_embeddings=64,
        rope_scaling=long,
        pad_token_id=0,
    )
    return {
        "Llama 3": (LlamaRotaryEmbedding, LlamaConfig(**sizes, rope_parameters=ROWS["llama3"][0] | {"rope_theta": BASE}), {}),
        "gpt-oss": (GptOssRotaryEmbedding, GptOssConfig(**sizes), {}),
        "DeepSeek-V3": (DeepseekV3RotaryEmbedding, DeepseekV3Config(**sizes, rope_parameters=rope), {"interleaved": False}),
        "Phi-3, short": (Phi3RotaryEmbedding, phi, {"length": 40}),
        "Phi-3, long": (Phi3RotaryEmbedding, phi, {"length": 100}),
    }  # fmt: skip


@pytest.mark.parametrize("model", ["Llama 3", "gpt-oss", "DeepSeek-V3", "Phi-3, short", "Phi-3, long"])
def test_cosines_and_sines_are_those_of_the_model_whose_config_was_read(model: str) -> None:
    module, config, options = modules()[model]
    positions = np.arange(options.get("length", 100))
    cos, sin = module(config)(torch.zeros(1), torch.tensor(positions)[None])
    rotary = Rotary.from_config(config, interleaved=options.pop("interleaved", None))
    for ours, theirs in zip(cos_and_sin(rotary, positions, **options), (cos, sin), strict=True):
        # their float32 angle: the frequency's error and one rounding, times the position
        room = rotary.scaling.amplitude * (positions[:, None] * 2 * FEW + 4 * 2.0**-24)
        assert (np.abs(ours - theirs[0, :, :32].numpy()) <= room).all()
        assert (
            np.abs(cos_and_sin(Rotary(base=rotary.base), positions)[0] - cos[0, :, :32].numpy()).max() > 0.1
        )


def test_the_decoupled_part_of_deepseek_is_turned_in_pairs_and_its_scores_scaled() -> None:
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Attention,
        apply_rotary_pos_emb_interleave,
    )

    module, config, _ = modules()["DeepSeek-V3"]
    rotary, positions = Rotary.from_config(config), np.arange(7)
    assert rotary.interleaved
    q, k = (torch.tensor(normal(2, heads, 7, 64, seed=heads)) for heads in (3, 1))  # one key for all heads
    cos, sin = (x.double() for x in module(config)(torch.zeros(1), torch.tensor(positions)[None]))
    for x, theirs in zip((q, k), apply_rotary_pos_emb_interleave(q, k, cos, sin), strict=True):
        ours = weights.interleaved_to_half(rotary(x.numpy(), positions), 64)  # where they leave the pairs
        assert np.abs(ours - theirs.numpy()).max() <= 8 * 7 * FEW * float(x.abs().max())
    whole = torch.cat([torch.tensor(normal(2, 3, 7, 32)), q], -1).numpy()  # content first, position behind
    part = np.concatenate([whole[..., :32], rotary(whole[..., 32:], positions)], -1)
    assert (part[..., :32] == whole[..., :32]).all()
    assert rotary.scaling is not None
    attention = DeepseekV3Attention(config, 0)
    scale = attention.qk_head_dim**-0.5 * rotary.scaling.score_factor  # type: ignore[attr-defined]
    assert attention.scaling == pytest.approx(scale, rel=8 * 2.0**-53)


@pytest.mark.parametrize("library", LIBRARIES)
def test_cos_and_sin_are_multiplied_by_the_amplitude(library: str) -> None:
    bench, x = bench_of(library), normal(2, 3, 5, 8)
    rotary = Rotary(scaling=YaRN(4.0, 64, attention_factor=2.0))
    given = bench.array(x, "float32"), bench.array(np.arange(5, dtype=np.int32))
    out, bare = (
        bench.numpy(Rotary(scaling=s)(*given)) for s in (rotary.scaling, YaRN(4.0, 64, attention_factor=1.0))
    )
    assert (out == 2 * bare).all()  # a power of two rounds nothing


@pytest.mark.parametrize("compiler", ["jax", "torch"])
def test_a_traced_length_chooses_between_short_and_long(compiler: str) -> None:
    x, positions = normal(2, 5, WIDTH), np.array([3, 0, 50, 8, 60])
    rotary = Rotary(scaling=LongRoPE(SHORT, LONG, 64, 4.0))
    programs: list[int] = []

    def run(x: Any, positions: Any, length: Any) -> Any:
        if compiler == "jax":
            programs.append(0)
        return rotary(x, positions, length=length)

    def counted(graph: Any, inputs: Any) -> Any:
        programs.append(0)
        return graph.forward

    if compiler == "jax":
        f, array = jax.jit(run), jnp.asarray
    else:
        f, array = torch.compile(run, fullgraph=True, backend=counted), torch.tensor
    given = array(x.astype("f4")), array(positions.astype("i4"))
    found = {n: np.asarray(f(*given, array(n))) for n in (64, 65, 100)}
    assert len(programs) == 1
    for n, out in found.items():
        assert np.abs(out - np.asarray(rotary(*given, length=n))).max() <= 8 * 2.0**-24 * np.abs(x).max()
    assert np.abs(found[64] - found[65]).max() > 0.1
    assert (found[65] == found[100]).all()


def test_a_traced_length_is_no_base() -> None:
    rotary = Rotary(scaling=DynamicNTK(2.0, 16))
    with pytest.raises(TypeError) as caught:
        jax.jit(lambda x, n: rotary(x, jnp.arange(3), length=n))(jnp.ones((3, 8)), 20)
    assert str(caught.value) == (
        "polyattn.rotary.Rotary: expected length to be an integer that is known while a compiler traces, got a traced "
        "value of dtype int32 and shape (); make it a static argument, for example jax.jit(f, static_argnames=...)"
    )


def test_a_length_is_a_fact_that_others_may_be_told() -> None:
    x, positions = normal(3, 8), np.arange(3)
    assert (Rotary()(x, positions, length=10) == Rotary()(x, positions)).all()


def test_configs_are_read_as_they_are_written() -> None:
    config = {"hidden_size": 256, "num_attention_heads": 2, "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    assert Rotary.from_config(config) == Rotary(base=1e6, width=64)
    each = {"full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}, "sliding_attention": {"rope_theta": 1e4}}  # fmt: skip
    gemma = {"model_type": "gemma4", "rope_parameters": each, "head_dim": 8}
    assert Rotary.from_config(gemma, layer_type="full_attention") == Rotary(
        base=1e6, scaling=Proportional(0.25)
    )
    assert Rotary.from_config(gemma, layer_type="sliding_attention") == Rotary()
    qwen = {"type": "mrope", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    assert Rotary.from_config(qwen) == Rotary(base=1e6, sections=(16, 24, 24))
    assert Rotary.from_config(qwen | {"mrope_section": [24, 20, 20], "mrope_interleaved": True}) == Rotary(
        base=1e6, sections=(24, 20, 20), section_order="interleaved"
    )
    half = {"rope_theta": 1e4, "partial_rotary_factor": 0.5}
    assert Rotary.from_config(half, head_dim=8, interleaved=True) == Rotary(width=4, interleaved=True)


X = np.zeros((3, 8))
FROM = "polyattn.rotary.Rotary.from_config: "
REFUSED = [
    (lambda: Rotary(scaling="yarn"), TypeError, "polyattn.rotary.Rotary: expected scaling to be one of polyattn.rotary (Linear, DynamicNTK, YaRN, Llama3, LongRoPE, Proportional), got 'yarn'; Rotary.from_config reads a config of Hugging Face"),
    (lambda: Linear(0.0), ValueError, "polyattn.rotary.Linear: expected factor > 0 and finite, got 0.0; see the model's config"),
    (lambda: Linear("4"), TypeError, "polyattn.rotary.Linear: expected factor to be a Python number, got '4'; pass a Python float"),
    (lambda: Proportional(1.5), ValueError, "polyattn.rotary.Proportional: expected proportion > 0 and at most 1.0, got 1.5; see the model's config"),
    (lambda: Llama3(8.0, 4.0, 1.0, 8192), ValueError, "polyattn.rotary.Llama3: expected low_freq_factor < high_freq_factor, got 4.0 and 1.0; they are 1.0 and 4.0 in Llama 3"),
    (lambda: YaRN(4.0, 4096, 1.0, 32.0), ValueError, "polyattn.rotary.YaRN: expected beta_slow <= beta_fast, got 32.0 and 1.0; they are turns in the original length, 1.0 and 32.0 in the paper"),
    (lambda: Rotary(base=1.0, scaling=YaRN(4.0, 64))(X, np.arange(3)), ValueError, "polyattn.rotary.YaRN: expected a base > 1, got 1.0; the ramp is over falling frequencies"),
    (lambda: LongRoPE(1.0, (2.0,), 64, 2.0), TypeError, "polyattn.rotary.LongRoPE: expected short_factor as a sequence of numbers, one for each pair, got float; pass a tuple"),
    (lambda: Rotary(scaling=LongRoPE((1.0,), (2.0,), 64, 2.0))(X, np.arange(3), length=3), ValueError, "polyattn.rotary.LongRoPE: expected 4 numbers in short_factor for a width of 8, got 1; give one for each pair of entries"),
    (lambda: Rotary(scaling=DynamicNTK(2.0, 64))(X, np.arange(3)), ValueError, "polyattn.rotary.DynamicNTK: expected length, how many tokens the text has, got None; write rotary(x, positions, length=...)"),
    (lambda: Rotary(scaling=DynamicNTK(2.0, 64))(X[:, :2], np.arange(3), length=3), ValueError, "polyattn.rotary.DynamicNTK: expected a width of at least 4, got 2; one pair has no base to change"),
    (lambda: Rotary(scaling=DynamicNTK(2.0, 64))(X, np.arange(3) + 98, length=100), ValueError, "polyattn.rotary.Rotary: expected positions below length=100, got 100; length is that of the whole text, with what a cache holds"),
    (lambda: Rotary().frequencies(7), ValueError, "polyattn.rotary.Rotary: expected an even width, got 7; entries are turned in pairs"),
    (lambda: Rotary.from_config({"rope_type": "spiral", "rope_theta": 1e4}), ValueError, FROM + "expected a rope_type among default, mrope, linear, dynamic, yarn, longrope, su, llama3, proportional, got 'spiral'; write its frequencies as a polyattn.rotary.Scaling"),
    (lambda: Rotary.from_config({"rope_type": "linear", "rope_theta": 1e4}), ValueError, FROM + "expected factor in the config, got rope_type, rope_theta; add it, nothing of a model is guessed"),
    (lambda: Rotary.from_config({"factor": 2.0, "type": "linear"}), ValueError, FROM + "expected rope_theta in the config, got factor, type; add it, nothing of a model is guessed"),
    (lambda: Rotary.from_config({"rope_theta": 1e4, "beta": 2}), ValueError, FROM + "expected rope_type, type, rope_theta, partial_rotary_factor, mrope_section, mrope_interleaved for rope_type 'default', got beta too; take out what is applied elsewhere"),
    (lambda: Rotary.from_config({"full": {"rope_theta": 1e4}, "local": {"rope_theta": 1e4}}), ValueError, FROM + "expected layer_type among full, local, got None; the config says which layer is of which"),
    (lambda: Rotary.from_config({"rope_theta": 1e4}, layer_type="full"), ValueError, FROM + "expected layer_type among none, for one kind of layer, got 'full'; the config says which layer is of which"),
    (lambda: Rotary.from_config({"rope_parameters": 3}), TypeError, FROM + "expected a config of transformers, or its rope_parameters as a dict, got a dict of 'rope_parameters'; pass model.config"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "sentence"), REFUSED)
def test_what_does_not_fit_is_refused_with_a_sentence(make: Any, error: Any, sentence: str) -> None:
    with pytest.raises(error) as caught:
        make()
    assert str(caught.value) == sentence
