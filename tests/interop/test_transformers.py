"""Models of `transformers` compute the same with polyattn's attention, whatever the architecture."""

from __future__ import annotations

import copy
import doctest
import re
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from polyattn_torch.transformers import attend, check, interface, register, verdict

import polyattn
from polyattn import _attention

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
Tensor = torch.Tensor
Batch = dict[str, Tensor]

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {**SIZES, **TOKENS, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
BART = {
    "d_model": 32,
    "vocab_size": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}

#: name -> (class of the model, arguments of its config, attention layers that run)
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaForCausalLM", GPT, 2),
    "mistral": ("MistralForCausalLM", GPT | {"sliding_window": 4}, 2),
    "gemma2": (
        "Gemma2ForCausalLM",
        GPT | WINDOWS | {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 5},
        2,
    ),
    "gpt_oss": ("GptOssForCausalLM", GPT | WINDOWS | MOE, 2),
    "gpt2": (
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, **TOKENS}
        | {"scale_attn_by_inverse_layer_idx": True},
        2,
    ),
    "bert": ("BertForMaskedLM", SIZES | {"intermediate_size": 64}, 2),
    "t5": (
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 64}
        | {"decoder_start_token_id": 0, "relative_attention_num_buckets": 8},
        6,
    ),
    "vit": (
        "ViTForImageClassification",
        {"image_size": 12, "patch_size": 4, "intermediate_size": 64, "num_labels": 64, **SIZES},
        2,
    ),
    # beyond those that were asked for
    "qwen3": ("Qwen3ForCausalLM", GPT, 2),
    "gemma3": ("Gemma3ForCausalLM", GPT | WINDOWS, 2),
    "phi3": ("Phi3ForCausalLM", GPT | {"sliding_window": 4}, 2),
    "mixtral": ("MixtralForCausalLM", GPT | MOE, 2),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES | TOKENS | {"intermediate_size": 64}, 2),
    "llama4": (
        "Llama4ForCausalLM",
        GPT | MOE | {"attention_chunk_size": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2},
        2,
    ),
    "deepseek_v32": (
        "DeepseekV32ForCausalLM",
        SIZES
        | TOKENS
        | MLA
        | {
            "intermediate_size": 64,
            "moe_intermediate_size": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
        }
        | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4}
        | {"index_topk": 3, "index_n_heads": 2, "index_head_dim": 16},
        2,
    ),
    "bart": ("BartForConditionalGeneration", BART | {"decoder_start_token_id": 1, **TOKENS}, 6),
    "nllb_moe": (  # its decoder does not say that it is causal
        "NllbMoeForConditionalGeneration",
        BART | {"decoder_start_token_id": 1, "num_experts": 2, **TOKENS},
        6,
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        SIZES | TOKENS | {"intermediate_size": 64, "local_attention": 6, "global_attn_every_n_layers": 2},
        2,
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        BART
        | TOKENS
        | {
            "num_mel_bins": 8,
            "max_source_positions": 10,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
        }
        | {"begin_suppress_tokens": None},
        6,
    ),
    "clip": (
        "CLIPModel",
        {
            "text_config": SIZES | TOKENS | {"intermediate_size": 64},
            "vision_config": SIZES | {"intermediate_size": 64, "image_size": 12, "patch_size": 4},
        },
        4,
    ),
}
ASKED = list(MODELS)[:8]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register()
    yield
    assert transformers.AttentionInterface()["polyattn"] is attend  # whatever `check` put there is gone


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(name: str, implementation: str | None = None) -> Any:
    """A tiny model with weights so large that attention is far from uniform."""
    kind, arguments, _ = MODELS[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    config = model_class.config_class(**copy.deepcopy(arguments))
    model = model_class._from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for i, w in enumerate(model.parameters()):
            w.add_(0.3 * numbers(*w.shape, seed=i))
    return model.eval()


def batch_for(name: str, padded: bool) -> Batch:
    """Ten tokens, or pixels; padded: four of the first item are not real, those on the left."""
    ids = torch.randint(3, 64, (2, 10), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 63  # where CLIP reads its result
    real = torch.ones_like(ids)
    real[0, :4] = 0
    pixels, sound = {"pixel_values": numbers(2, 3, 12, 12)}, {"input_features": numbers(2, 8, 20)}
    if name == "vit":
        return pixels
    if name == "whisper":
        return {**sound, "decoder_input_ids": ids, **({"decoder_attention_mask": real} if padded else {})}
    text = {"input_ids": ids, **({"attention_mask": real} if padded else {})}
    if name == "clip":
        return text | pixels
    if name in ("t5", "bart", "nllb_moe"):
        text["decoder_input_ids"] = ids.flip(1)[:, :6]
    return text


CASES = [(name, padded) for name in MODELS for padded in (False, True) if (name, padded) != ("vit", True)]


def ids_of(cases: list[tuple[str, bool]]) -> list[str]:
    return [f"{name}-{'padded' if padded else 'whole'}" for name, padded in cases]


@pytest.mark.parametrize(("name", "padded"), CASES, ids=ids_of(CASES))
def test_every_layer_calls_polyattn_and_the_logits_are_those_of_eager_attention(
    name: str, padded: bool
) -> None:
    found = check(make(name), batch_for(name, padded))
    assert found.ok, found.sentence
    assert (found.calls, found.layers, found.ignored) == (MODELS[name][2], MODELS[name][2], ())
    assert 0 < found.bound < 1e-3


def loss_and_gradients(model: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits at real tokens, and the gradients of a random combination of them."""
    model.zero_grad()
    logits, _ = verdict._output(model, batch)
    logits = logits * verdict._real(model, batch, logits)
    (logits * numbers(*logits.shape).to(logits)).sum().backward()
    gradients = {key: w.grad for key, w in model.named_parameters() if w.grad is not None}
    return logits.detach(), gradients


def far(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).abs().max())


WITHOUT_SDPA = ("gemma2", "gpt_oss", "nllb_moe")
DERIVED = [*ASKED, "gemma3", "mixtral", "nllb_moe", "deepseek_v32"]


@pytest.mark.parametrize("name", DERIVED)
def test_logits_and_gradients_are_those_of_eager_attention_and_sdpa_up_to_rounding(name: str) -> None:
    padded = name not in ("vit", "deepseek_v32")  # with padding, DeepSeek's eager attention is NaN in float64
    batch = batch_for(name, padded)
    exact = make(name, "eager").double()
    exact.set_experts_implementation("eager")
    with verdict._masks_in_float32() if padded else nullcontext():
        true_logits, true = loss_and_gradients(exact, batch)
    noise = dict.fromkeys(["logits", *true], 0.0)
    for seed in range(4):  # what rounding does to eager attention, with every parameter off by one rounding
        draw = make(name, "eager")
        with torch.no_grad():
            for w in draw.parameters():
                w.copy_(w.double() * (1 + 2.0**-24 * numbers(*w.shape, seed=seed).sign()))
        logits, gradients = loss_and_gradients(draw, batch)
        noise["logits"] = max(noise["logits"], far(logits, true_logits))
        noise |= {key: max(noise[key], far(gradients[key], true[key])) for key in true}
    ours, gradients = loss_and_gradients(make(name, "polyattn"), batch)
    for other in ["eager"] if name in WITHOUT_SDPA else ["eager", "sdpa"]:
        assert far(ours, loss_and_gradients(make(name, other), batch)[0]) <= 4 * noise["logits"]
    assert far(ours, true_logits) <= 4 * noise["logits"]
    assert {
        key: far(gradients[key], true[key]) for key in true if far(gradients[key], true[key]) > 4 * noise[key]
    } == {}


GENERATORS = [
    "llama",
    "mistral",
    "gemma2",
    "gpt_oss",
    "gpt2",
    "qwen3",
    "llama4",
    "deepseek_v32",
    "t5",
    "bart",
]


@pytest.mark.parametrize("name", [*GENERATORS, "whisper"])
def test_greedy_generation_with_padding_on_the_left_gives_the_same_tokens(name: str) -> None:
    batch = batch_for(name, padded=True)
    batch.pop("decoder_input_ids", None)
    batch.pop("decoder_attention_mask", None)
    texts = {}
    for implementation in ("eager", "polyattn"):
        model = make(name, implementation)
        texts[implementation] = model.generate(**batch, do_sample=False, min_new_tokens=9, max_new_tokens=9)
    assert texts["eager"].tolist() == texts["polyattn"].tolist()
    assert len({*texts["eager"][0, -8:].tolist(), *texts["eager"][1, -8:].tolist()}) > 1


def test_a_static_cache_with_empty_places_gives_the_same_tokens() -> None:
    model, ids = make("llama", "polyattn"), batch_for("llama", padded=False)["input_ids"]
    options = {"do_sample": False, "min_new_tokens": 6, "max_new_tokens": 6}
    plain = model.generate(ids, **options)
    assert (model.generate(ids, cache_implementation="static", **options) == plain).all()


def test_the_mask_is_of_bools_or_none_where_a_model_supports_sdpa() -> None:
    seen: list[Tensor | None] = []

    def spy(module: Any, query: Any, key: Any, value: Any, mask: Tensor | None, **options: Any) -> Any:
        seen.append(mask)
        return attend(module, query, key, value, mask, **options)

    transformers.AttentionInterface.register("polyattn", spy)
    try:
        for padded in (False, True):
            make("llama", "polyattn")(**batch_for("llama", padded))
    finally:
        register()
    assert seen[:2] == [None, None]
    assert seen[2] is not None
    assert (seen[2].dtype, seen[2].shape) == (torch.bool, (2, 1, 10, 10))
    assert not seen[2][0, 0, :, :4].any()


# What `attend` does with each keyword.


class Layer(torch.nn.Module):
    """What calls attention."""

    is_causal = True


def qkv(rows: int = 6, keys: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    return numbers(2, 4, rows, 8), numbers(2, 2, keys, 8, seed=1), numbers(2, 2, keys, 8, seed=2)


def test_no_mask_is_causal_where_the_module_or_the_call_says_so() -> None:
    said, q = Layer().eval(), qkv()
    causal = polyattn.attention(*q, is_causal=True).transpose(1, 2)
    full = polyattn.attention(*q).transpose(1, 2)
    assert torch.equal(attend(said, *q, None)[0], causal)
    assert torch.equal(attend(said, *q, None, is_causal=False)[0], full)
    assert torch.equal(attend(torch.nn.Module().eval(), *q, None)[0], full)
    assert torch.equal(attend(torch.nn.Module().eval(), *q, None, is_causal=True)[0], causal)
    last = polyattn.attention(q[0][:, :, :1], *q[1:]).transpose(1, 2)
    assert torch.equal(attend(said, q[0][:, :, :1], *q[1:], None)[0], last)


@pytest.mark.parametrize("least", [-torch.inf, torch.finfo(torch.float32).min])
def test_floats_that_hide_are_a_mask_and_other_floats_are_added(least: float) -> None:
    q, allowed = qkv(), numbers(2, 1, 6, 6, seed=3) > 0
    allowed[0, 0, 2] = False
    bias, added = numbers(1, 4, 6, 6, seed=4), numbers(2, 1, 6, 6, seed=5)
    mask = torch.where(allowed, added, least)
    got, _ = attend(Layer().eval(), *q, mask, position_bias=bias)
    assert torch.equal(got, polyattn.attention(*q, mask=allowed, bias=bias + added).transpose(1, 2))
    assert (got[0, 2] == 0).all()  # a row that sees nothing


def test_dropout_happens_in_training_alone_and_follows_the_generator_of_pytorch() -> None:
    layer, q = Layer(), qkv()
    torch.manual_seed(7)
    seed = torch.randint(2**31 - 1, (), dtype=torch.int32)
    expected = polyattn.attention(*q, is_causal=True, dropout_rate=0.5, dropout_seed=seed).transpose(1, 2)
    torch.manual_seed(7)
    assert torch.equal(attend(layer, *q, None, dropout=0.5)[0], expected)
    assert not torch.equal(attend(layer, *q, None, dropout=0.5)[0], expected)
    kept = torch.get_rng_state()
    without, _ = attend(layer.eval(), *q, None, dropout=0.5)
    assert torch.equal(without, attend(layer, *q, None)[0])
    assert torch.equal(torch.get_rng_state(), kept)


def test_packed_documents_do_not_see_each_other() -> None:
    q = tuple(x[:1] for x in qkv())
    bounds = torch.tensor([0, 2, 6], dtype=torch.int32)
    apart = torch.cat(
        [attend(Layer().eval(), *(x[:, :, i:j] for x in q), None)[0] for i, j in ((0, 2), (2, 6))], 1
    )
    packed, _ = attend(Layer().eval(), *q, None, cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=4)
    assert far(packed, apart) < 1e-6
    numbered, _ = attend(Layer().eval(), *q, None, seq_idx=torch.tensor([[0, 0, 1, 1, 1, 1]]))
    assert torch.equal(numbered, packed)


def test_autocast_computes_in_its_dtype_and_scores_in_float32() -> None:
    q = qkv()
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = attend(Layer().eval(), q[0], q[1], q[2].bfloat16(), None)
    expected = polyattn.attention(*(x.bfloat16() for x in q), is_causal=True).transpose(1, 2)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("name", ["llama", "gpt_oss", "bert"])
def test_the_weights_come_where_they_are_asked_for(name: str) -> None:
    batch = batch_for(name, padded=False)
    theirs, ours = (
        make(name, implementation)(**batch, output_attentions=True).attentions
        for implementation in ("eager", "polyattn")
    )
    assert len(theirs) == len(ours) == 2
    for x, y in zip(theirs, ours, strict=True):
        assert x.shape == y.shape
        assert far(x, y) < 1e-5


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "a keyword that it does not know": (
        lambda: attend(Layer(), *qkv(), None, head_mask=torch.ones(4), layer_idx=1),
        "expected keywords that it knows from Layer, got head_mask (Tensor); it could change the result, so take "
        "another attn_implementation for this model, such as 'eager'",
    ),
    "a paged cache": (lambda: attend(Layer(), *qkv(), None, cache=object()), "got cache (object)"),
    "integers for a mask": (
        lambda: attend(Layer(), *qkv(), torch.ones(2, 1, 6, 6, dtype=torch.int64)),
        "expected a mask of bools (True = may attend) or of floats that are added to the scores from Layer, got "
        "torch.int64, which could be either; compare it, mask != 0",
    ),
    "no mask for some of the tokens": (
        lambda: attend(Layer(), *qkv(3, 6), None),
        "expected a mask for 3 causal queries and 6 keys from Layer, got None, which leaves open whether the "
        "queries are the first tokens or the last ones; pass bools, True = may attend",
    ),
    "no mask for a window": (
        lambda: attend(Layer(), *qkv(), None, sliding_window=4),
        "expected a mask that holds the window from Layer, got None with sliding_window=4 and 6 keys; make it "
        "with transformers.masking_utils.create_sliding_window_causal_mask",
    ),
    "what attention itself refuses": (
        lambda: attend(Layer(), *qkv(), None, position_bias=torch.ones(4, 5, 6)),
        "polyattn_torch.transformers: expected a bias that broadcasts to the scores (..., Hq, L, S) = (2, 4, 6, 6), got "
        "shape (4, 5, 6)",
    ),
    "documents in several items": (
        lambda: attend(
            Layer(), *qkv(), None, cu_seq_lens_q=torch.tensor([0, 6]), cu_seq_lens_k=torch.tensor([0, 6])
        ),
        "got 2 items of 6 queries and 6 keys, and ends 6 and 6; pass both, and no cache",
    ),
    "documents of the queries alone": (
        lambda: attend(Layer(), *(x[:1] for x in qkv()), None, cu_seq_lens_q=torch.tensor([0, 6])),
        "got 1 items of 6 queries and 6 keys, and ends 6 and None",
    ),
    "a model that is none": (
        lambda: check(Layer(), {}),  # type: ignore[arg-type]
        "polyattn_torch.transformers.check: expected a transformers.PreTrainedModel, got Layer; pass the model itself",
    ),
    "a batch that is none": (
        lambda: check(make("llama"), torch.ones(2, 3)),  # type: ignore[arg-type]
        "expected a batch to call the model with, model(**batch), without past_key_values, got Tensor",
    ),
    "a batch with a cache": (
        lambda: check(make("llama"), {"past_key_values": None}),
        "without past_key_values, got past_key_values; pass what the tokenizer or processor gives",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_change_the_result_is_refused_in_a_sentence(case: str) -> None:
    call, sentence = REFUSED[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        call()


# check


OLD = {
    "bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, 2),
    "falcon": ("FalconForCausalLM", SIZES, 2),
}


@pytest.mark.parametrize("name", OLD)
def test_a_model_that_ignores_the_registration_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, name, OLD[name])
    found = check(make(name), batch_for(name, padded=True))
    assert not found.ok
    assert (found.calls, found.layers) == (0, 2)
    kind = OLD[name][0]
    assert str(found).startswith(
        f"{kind} IGNORES attn_implementation='polyattn': 2 attention layers never call it "
        "(transformer.h.0.self_attention, transformer.h.1.self_attention); its logits agree with eager attention"
    )


def test_falcon_cannot_even_be_created_so() -> None:
    with pytest.raises(KeyError, match="polyattn"):
        transformers.FalconForCausalLM._from_config(
            transformers.FalconConfig(**SIZES), attn_implementation="polyattn"
        )


def test_labels_do_not_bring_padding_into_the_comparison() -> None:
    batch = batch_for("llama", padded=True)
    assert check(make("llama"), batch | {"labels": batch["input_ids"]}).ok


def test_layers_that_do_not_call_polyattn_are_named() -> None:
    sizes = SIZES | {"intermediate_size": 64, "image_size": 12, "patch_size": 4}
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**sizes)).eval()
    found = check(model, {"pixel_values": numbers(2, 3, 12, 12)})
    assert not found.ok
    assert (found.calls, found.layers, found.ignored) == (2, 3, ("head.attention",))
    assert (
        "uses polyattn in 2 layers, but 1 attention layers never call it (head.attention)" in found.sentence
    )


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("llama", {"is_causal": False}),
        ("llama", {"scale": 0.36}),  # instead of 8 ** -0.5
        ("gemma2", {"score_mod": None}),
        ("gpt_oss", {"sinks": None}),
        ("mistral", {"mask": None}),
        ("t5", {"bias": None}),
    ],
)
def test_attention_that_is_wrong_is_noticed(
    name: str, mistake: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = _attention.attend
    monkeypatch.setattr(_attention, "attend", lambda *x, **options: right(*x, **options | mistake))
    found = check(make(name), batch_for(name, padded=False))
    assert not found.ok
    assert found.calls == MODELS[name][2]
    assert found.deviation > 100 * found.bound
    assert " DEVIATE from eager attention in float64: off by " in found.sentence


def test_a_part_with_a_config_of_its_own_is_not_compared_with_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make("llama", "polyattn")
    for layer in model.model.layers:  # as the decoder of ViTMAE has it
        layer.self_attn.config = copy.deepcopy(layer.self_attn.config)
    batch = batch_for("llama", padded=False)
    assert check(model, batch).ok
    right = _attention.attend
    monkeypatch.setattr(_attention, "attend", lambda *x, **options: right(*x, **options | {"scale": 1.0}))
    assert not check(model, batch).ok


def test_padding_is_known_where_an_item_has_several_rows_of_output() -> None:
    model, mask = make("llama"), torch.tensor([[0, 1, 1], [1, 1, 1]])
    real = verdict._real(
        model, {"attention_mask": mask}, torch.zeros(4, 3, 7)
    )  # as the codebooks of Musicgen
    assert real[..., 0].tolist() == [[False, True, True]] * 2 + [[True] * 3] * 2
    assert verdict._real(model, {"attention_mask": mask}, torch.zeros(3, 3, 7)).shape == ()


def test_what_a_model_wants_back_does_not_concern_attention() -> None:
    q, k, v = qkv()
    module = torch.nn.Module()
    plain, _ = attend(module, q, k, v, None)
    assert torch.equal(attend(module, q, k, v, None, return_dict=True)[0], plain)  # Hubert hands it down


def test_a_model_that_gives_nan_by_itself_is_not_said_to_deviate() -> None:
    model = make("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    found = check(model, batch_for("llama", padded=False))
    assert not found.ok
    assert found.sentence.endswith(
        "its logits CANNOT BE COMPARED with eager attention, which gives NaN by itself"
    )


def test_a_check_leaves_the_model_as_it_is() -> None:
    model = make("llama", "sdpa").train()
    before = {key: w.clone() for key, w in model.state_dict().items()}
    assert check(model, batch_for("llama", padded=True)).ok
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(w, before[key]) for key, w in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_check_in_half_precision_allows_what_eager_attention_errs() -> None:
    found = check(make("qwen3").bfloat16(), batch_for("qwen3", padded=True))
    assert found.ok, found.sentence
    assert found.bound > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_a_model_on_cuda_agrees_too(name: str, dtype: torch.dtype) -> None:
    assert torch.cuda.is_available(), "the GPU tests were asked for and there is no GPU"
    batch = {key: x.cuda() for key, x in batch_for(name, padded=True).items()}
    found = check(make(name).to(dtype).cuda(), batch)
    assert found.ok, found.sentence


@pytest.mark.parametrize(
    ("name", "module", "advice"),
    [
        ("transformers", None, "install it, pip install 'polyattn[transformers]'"),
        ("transformers.masking_utils", ModuleType("masking_utils"), "mend or upgrade that installation"),
    ],
    ids=["none", "one that fails"],
)
def test_without_transformers_it_is_said_why(
    name: str, module: ModuleType | None, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_from_file_location("interface_anew", str(interface.__file__))
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ImportError) as caught:
        spec.loader.exec_module(module_from_spec(spec))
    expected = "polyattn_torch.transformers: expected the package transformers, version 5 or later, got: "
    assert str(caught.value) == f"{expected}{caught.value.__cause__}; {advice}"


def test_the_examples_of_the_docstrings_hold() -> None:
    assert doctest.testmod(interface) == (0, 5)


def test_the_programs_of_the_page_run_and_print_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "transformers.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    namespace: dict[str, Any] = {}
    for program in programs:
        exec(compile(program, "transformers.md", "exec"), namespace)
    printed = capsys.readouterr().out
    for expected in ("True", "computes attention with polyattn", "IGNORES"):
        assert expected in printed
