"""A language model goes on with a text: the same on every library, in pieces of any size, by chance that is a function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from shared.running import bench_of, drawn, mapped, normal

from polyattn import layers
from polyattn.arrays import backend_of
from polyattn.generation import Sampling, generate, gumbel, likeliest
from polyattn.rotary import Rotary
from polyattn.truth.rounding import noise
from polyattn.weights import from_format, to_format

NORM = layers.RMSNorm(12, epsilon=1e-5)


def block(**more: Any) -> layers.EncoderBlock:
    attention = layers.MultiHeadAttention(12, 3, num_kv_heads=1, is_causal=True, rotary=Rotary(), qkv_bias=False, out_bias=False, **more)  # fmt: skip
    return layers.EncoderBlock(
        attention, layers.MLP(12, 16, activation="swiglu", use_bias=False), NORM, norm_first=True
    )


TRUNK = layers.Encoder((block(), block(sinks=True)), 3, final_norm=NORM)
MODEL = layers.LanguageModel(layers.Embedding(40, 12), TRUNK)
PARAMS = drawn(MODEL)
TEXT = [3, 1, 4, 1, 5, 9, 2, 6]


def told(library: str, n: int = 12, **options: Any) -> list[int]:
    bench = bench_of(library)
    params = mapped(lambda x: bench.array(x, "float32"), PARAMS)
    return [token.number for token in generate(MODEL, params, TEXT, length=n, **options)]


@pytest.mark.parametrize("library", ["numpy", "strict", "jax", "torch"])
@pytest.mark.parametrize("choose", [likeliest, Sampling(seed=5, temperature=0.9)], ids=["likeliest", "drawn"])
def test_every_library_goes_on_with_the_same_text(library: str, choose: Any) -> None:
    expected, margin = list(TEXT), np.inf
    for _ in range(12):  # by the whole text each time
        scores = np.sort(choose(MODEL(PARAMS, np.asarray(expected))[-1], len(expected)))
        margin = min(margin, scores[-1] - scores[-2])
        expected.append(int(choose(MODEL(PARAMS, np.asarray(expected))[-1], len(expected)).argmax()))
    assert margin > 1e-3  # far from any other text
    assert told(library, choose=choose) == expected[len(TEXT) :]


@pytest.mark.parametrize("library", ["numpy", "jax"])
@pytest.mark.parametrize("piece", [1, 3, 8])
def test_the_size_of_pieces_does_not_matter(library: str, piece: int) -> None:
    assert told(library, piece=piece) == told("numpy")


def test_programs_of_two_sizes_serve_every_position_of_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = replace(MODEL, logits_cap=30.0)  # no other test's
    params = mapped(lambda x: bench_of("jax").array(x, "float32"), PARAMS)
    backend, made = backend_of(params["embedding"]["table"]), []
    jit = type(backend).jit

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(jit(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(type(backend), "jit", counted)
    for text, length in ((TEXT, 12), (TEXT[:5], 7)):
        list(generate(model, params, text, length=length, piece=3))
    sizes = [program._cache_size() for program in made]
    assert len(sizes) == 4  # two kinds of blocks, what comes before them, what comes behind
    assert max(sizes) == 2  # for a piece, and for one token


@pytest.mark.parametrize("kind", ["attention", "a state"])
def test_a_text_of_any_length_goes_in_by_few_steps_of_two_sizes(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last piece begins earlier, or ends later; where a state remembers, token after token instead."""
    trunk = TRUNK
    if kind == "a state":
        linear = layers.LinearAttention(12, 2, chunk_size=4)
        mlp = layers.MLP(12, 16, activation="swiglu", use_bias=False)
        trunk = layers.Encoder(layers.EncoderBlock(linear, mlp, NORM, norm_first=True), 1, final_norm=NORM)
    model = replace(MODEL, trunk=trunk, logits_cap=20.0)  # no other test's
    params = drawn(model)
    backend, steps = backend_of(bench_of("jax").array(np.zeros(1))), []
    jit = type(backend).jit

    def counted(self: Any, f: Any, **options: Any) -> Any:
        program = jit(self, f, **options)

        def run(*given: Any) -> Any:
            if options.get("given_up") is not None:
                steps.append(given[1].shape[1])
            return program(*given)

        return run

    monkeypatch.setattr(type(backend), "jit", counted)
    for count in range(1, 10):
        text = [*TEXT, 7][:count]
        wrote = {}
        for library in ("numpy", "jax"):
            given = mapped(lambda x: bench_of(library).array(x, "float32"), params)  # noqa: B023
            steps.clear()
            wrote[library] = [t.number for t in generate(model, given, text, length=2, piece=4)]
        assert wrote["jax"] == wrote["numpy"]
        blocks, written = len(trunk.blocks), 2
        whole, rest = divmod(count, 4)
        pieces = [4] * whole + ([4] if rest > 1 and kind == "attention" else [1] * rest)
        assert steps[::blocks] == [*pieces, *[1] * written]


def test_a_text_ends_before_a_token_that_stops_it() -> None:
    whole = told("numpy")
    end = whole[4]
    assert told("numpy", stop={end}) == whole[: whole.index(end)]
    assert told("numpy", n=0) == []


def test_params_that_learn_leave_no_trace() -> None:
    torch = pytest.importorskip("torch")
    params = mapped(lambda x: torch.tensor(x, requires_grad=True), PARAMS)
    assert [t.number for t in generate(MODEL, params, TEXT, length=3)] == told("numpy", 3)


def test_draws_have_the_distribution_of_the_softmax() -> None:
    logits, n = np.log(np.asarray([0.5, 0.3, 0.15, 0.05])), 3000
    drawn = np.asarray([Sampling(seed=7)(logits, i).argmax() for i in range(n)])
    share = np.bincount(drawn, minlength=4) / n
    p = np.exp(logits)
    assert (np.abs(share - p) <= 4 * np.sqrt(p * (1 - p) / n)).all()  # four standard deviations


def test_a_seed_is_a_text_and_another_seed_another() -> None:
    texts = [told("numpy", choose=Sampling(seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert (gumbel(1, 5, 9) == gumbel(1, 5, 30)[:9]).all()


def test_top_k_and_top_p_keep_the_fewest_that_they_may() -> None:
    logits = np.log(np.asarray([0.1, 0.4, 0.2, 0.3]))
    kept = lambda **o: np.flatnonzero(np.isfinite(Sampling(seed=0, **o)(logits, 0))).tolist()  # noqa: E731
    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 3]
    assert kept(top_k=9) == [0, 1, 2, 3]
    assert kept(top_p=0.39) == [1]
    assert kept(top_p=0.41) == [1, 3]
    assert kept(top_p=0.95) == [0, 1, 2, 3]
    assert kept(top_p=0.39 / 0.7, top_k=2) == [1]  # of what top_k leaves
    assert kept(top_p=0.41, temperature=1e-3) == [1]


def test_the_table_of_the_embedding_is_the_head_where_there_is_none() -> None:
    x = np.asarray([[1, 2, 3]])
    head = layers.Linear(12, 40, use_bias=False)
    apart = layers.LanguageModel(MODEL.embedding, TRUNK, head=head)
    params = PARAMS | {"head": {"w": PARAMS["embedding"]["table"].T}}
    assert np.abs(MODEL(PARAMS, x) - apart(params, x)).max() <= 2.0**-45
    capped = layers.LanguageModel(MODEL.embedding, TRUNK, logits_cap=2.0, embedding_scale=1.0)
    assert np.abs(capped(PARAMS, x) - 2 * np.tanh(MODEL(PARAMS, x) / 2)).max() <= 2.0**-50
    scaled = layers.LanguageModel(MODEL.embedding, TRUNK, embedding_scale=3.0)
    table = {"table": 3.0 * PARAMS["embedding"]["table"]}
    body = scaled.trunk_of(PARAMS, x).out - MODEL.trunk_of(PARAMS | {"embedding": table}, x).out
    assert np.abs(body).max() <= 2.0**-45


SMALL = layers.LayerNorm(12, epsilon=1e-5)
ACROSS = layers.DecoderBlock(
    layers.MultiHeadAttention(12, 3), layers.MultiHeadCrossAttention(12, 2, context_dim=6), SMALL,
    mlp=layers.MLP(12, 16, activation="gelu"), norm_first=True,
)  # fmt: skip
WRITER = layers.LanguageModel(layers.Embedding(40, 12), layers.Decoder(ACROSS, 2, final_norm=SMALL), positions=layers.Embedding(24, 12))  # fmt: skip
SOURCE = normal(1, 7, 6)


@pytest.mark.parametrize("library", ["numpy", "strict", "jax", "torch"])
def test_a_decoder_goes_on_with_a_text_about_a_context_at_learned_positions(library: str) -> None:
    params, expected, margin = drawn(WRITER), list(TEXT), np.inf
    for _ in range(12):  # by the whole text each time, from the context itself
        scores = WRITER(params, np.asarray([expected]), SOURCE)[0, -1]
        margin = min(margin, float(np.diff(np.sort(scores)[-2:])[0]))
        expected.append(int(scores.argmax()))
    assert margin > 1e-3
    bench = bench_of(library)
    given = mapped(lambda x: bench.array(x, "float32"), params)
    context = bench.array(SOURCE, "float32")
    found = [t.number for t in generate(WRITER, given, TEXT, length=12, piece=3, context=context)]
    assert found == expected[len(TEXT) :]
    other = [t.number for t in generate(WRITER, given, TEXT, length=12, context=-context)]
    assert other != found  # what is heard matters


def test_learned_positions_are_those_of_the_tokens_and_continue_a_cache() -> None:
    plain = layers.LanguageModel(MODEL.embedding, TRUNK)
    model = layers.LanguageModel(MODEL.embedding, TRUNK, positions=layers.Embedding(9, 12))
    params, x = drawn(model), np.asarray([TEXT])
    added = plain.vectors(params, x) + params["positions"]["table"][:8]
    assert (model.vectors(params, x) == added).all()
    caches, pieces = model.empty_cache(1, 8, like=SOURCE), []
    for start, stop in ((0, 3), (3, 4), (4, 8)):
        out, caches, _ = model.run(params, x[:, start:stop], cache=caches)
        pieces.append(out)
    room = 4 * noise(lambda number: model(mapped(number, params), x)) * 2.0**-29  # in float64
    assert np.abs(np.concatenate(pieces, 1) - model(params, x)).max() <= room < 1e-9


@pytest.mark.parametrize("format", ["gguf", "llama"])
def test_a_model_goes_through_a_format_and_back(format: str) -> None:
    plain = layers.LanguageModel(MODEL.embedding, layers.Encoder(block(), 2, final_norm=NORM))
    params = drawn(plain)
    back = from_format(plain, to_format(plain, params, format), format)
    x = np.asarray([[1, 2, 3]])
    assert (plain(params, x) == plain(back, x)).all()


CALLS: dict[str, tuple[Any, str]] = {
    "no text": (lambda: generate(MODEL, PARAMS, [], length=3), "generate: expected tokens to go on from, got none; begin with the token that begins a text"),
    "no piece": (lambda: generate(MODEL, PARAMS, TEXT, length=3, piece=0), "generate: expected piece of at least 1, got 0; so many tokens go in at a time"),
    "no context": (lambda: generate(WRITER, {}, TEXT, length=3), "generate: expected a context with a trunk that is a Decoder and only there, got a trunk that is Decoder and no context; a Decoder looks at what an encoder gives"),
    "a context": (lambda: generate(MODEL, PARAMS, TEXT, length=3, context=SOURCE), "generate: expected a context with a trunk that is a Decoder and only there, got a trunk that is Encoder and a context; a Decoder looks at what an encoder gives"),
    "positions": (lambda: generate(WRITER, {}, TEXT, length=17, context=SOURCE), "generate: expected tokens and length of at most 24 together, which have positions, got 8 and 17; ask for fewer"),
    "temperature": (lambda: Sampling(seed=0, temperature=0.0), "Sampling: expected temperature > 0 and finite, got 0.0; without chance take likeliest"),
    "top_k": (lambda: Sampling(seed=0, top_k=0), "Sampling: expected top_k of at least 1, got 0; None is all of them"),
    "top_p": (lambda: Sampling(seed=0, top_p=0.0), "Sampling: expected 0 < top_p <= 1, got 0.0; it is a probability"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_cannot_be_is_answered_in_a_sentence(name: str) -> None:
    call, sentence = CALLS[name]
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == f"polyattn.generation.{sentence}"
