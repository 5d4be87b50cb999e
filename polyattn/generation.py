"""A language model goes on with a text, one token after the other: the same tokens on every array library."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from polyattn.arrays import Array, Backend, backend_of, is_array
from polyattn.arrays.random import key_of, threefry2x32
from polyattn.calls import answers, array, number, seed, size
from polyattn.layers import Decoder, LanguageModel, Params

__all__ = ["Choice", "Sampling", "Token", "generate", "likeliest"]

_WHO = "polyattn.generation"
ROOM = (
    256  # caches hold a multiple of it where programs are compiled, so that texts of many lengths share them
)
Floats = np.ndarray[Any, np.dtype[np.float64]]
#: (logits (vocabulary,) in float64, position of the next token) -> scores, whose largest names the next token.
Choice = Callable[[Floats, int], Floats]


class Token(NamedTuple):
    """A token that was chosen."""

    number: int
    margin: float  # how much larger its score was than that of any other, in units of the logits


def likeliest(logits: Floats, position: int) -> Floats:
    """Greedy decoding: the scores are the logits."""
    return logits


@answers(f"{_WHO}.Sampling", "settings")
@dataclass(frozen=True)
class Sampling:
    """Draws from softmax(logits / temperature), of the top_k largest logits, of the fewest that hold top_p together.

        scores = logits + temperature * g,   g = -log(-log(u)),   u uniform from (seed, position, token) alone

    Their argmax has just that distribution (Gumbel 1954; Maddison 2014, arXiv:1411.0030, section 2), and no library
    has a say in u, so that one seed is one text. top_p: nucleus, Holtzman 2020, arXiv:1904.09751.

    >>> Sampling(seed=1, top_k=1)(np.asarray([0.0, 3.0, 1.0]), 5).argmax()
    np.int64(1)
    """

    _: KW_ONLY
    seed: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        who = f"{_WHO}.Sampling"
        seed(who, "seed", self.seed)
        if not 0.0 < number(who, "temperature", self.temperature) < float("inf"):
            raise ValueError(
                f"{who}: expected temperature > 0 and finite, got {self.temperature!r}; without chance take likeliest"
            )
        if self.top_k is not None and size(who, "top_k", self.top_k) < 1:
            raise ValueError(f"{who}: expected top_k of at least 1, got {self.top_k!r}; None is all of them")
        if self.top_p is not None and not 0.0 < number(who, "top_p", self.top_p) <= 1.0:
            raise ValueError(f"{who}: expected 0 < top_p <= 1, got {self.top_p!r}; it is a probability")

    def __call__(self, logits: Floats, position: int) -> Floats:
        scores = logits + self.temperature * gumbel(self.seed, position, len(logits))
        order = np.argsort(-logits, kind="stable")
        some = len(order) if self.top_k is None else self.top_k
        if self.top_p is not None:
            ranked = logits[order[:some]] / self.temperature
            weights = np.exp(ranked - ranked[0])
            before = np.cumsum(weights) - weights
            some = int(np.count_nonzero(before < self.top_p * np.sum(weights)))
        scores[order[some:]] = -np.inf
        return scores


def gumbel(seed: int, position: int, count: int) -> Floats:
    """Standard Gumbel numbers (count,), a function of the seed, the position in the text, and the index alone."""
    index = np.arange(count, dtype=np.int32)
    key0, key1 = (np.full_like(index, key) for key in key_of(seed, 0))
    word, _ = threefry2x32(key0, key1, np.full_like(index, position), index)
    uniform = (word + 2.0**31 + 0.5) * 2.0**-32
    drawn: Floats = -np.log(-np.log(uniform))
    return drawn


@answers(f"{_WHO}.generate")
def generate(
    model: LanguageModel,
    params: Params,
    tokens: Sequence[int],
    *,
    length: int,
    context: Array | None = None,
    choose: Choice = likeliest,
    stop: Collection[int] = (),
    piece: int = 32,
) -> Iterator[Token]:
    """The tokens that follow, at most `length`, each as soon as it is chosen; none of `stop`, before which it ends.

    tokens: the text so far, at least one. context (1, S, C): what a trunk that is a `Decoder` looks at, whose keys and
    values are made once. choose: `likeliest`, a `Sampling`, or any function of logits and position.
    The text goes into the caches of the model `piece` tokens at a time, then each token as it comes; on JAX through
    compiled blocks of these two sizes, which serve every position of every text: its last piece begins earlier, or ends
    later, and what is too much is overwritten. The choice is made in float64 on NumPy for all libraries, so that they
    differ by their logits alone; `margin` tells how near a choice came to being another one.

    >>> from polyattn.layers import MLP, CausalSelfAttention, Embedding, Encoder, EncoderBlock, RMSNorm
    >>> norm, attention = RMSNorm(8, epsilon=1e-5), CausalSelfAttention(8, 2, context_length=None)
    >>> block = EncoderBlock(attention, MLP(8, 16, activation="swiglu"), norm, norm_first=True)
    >>> model = LanguageModel(Embedding(50, 8), Encoder(block, 2, final_norm=norm))
    >>> params = model.init(0, like=np.zeros(()))
    >>> [token.number for token in generate(model, params, [3, 1, 4], length=4)]
    [48, 25, 30, 4]
    """
    who = f"{_WHO}.generate"
    length, piece = size(who, "length", length), size(who, "piece", piece)
    text = [int(token) for token in tokens]
    if not text:
        raise ValueError(
            f"{who}: expected tokens to go on from, got none; begin with the token that begins a text"
        )
    if piece < 1:
        raise ValueError(f"{who}: expected piece of at least 1, got {piece}; so many tokens go in at a time")
    if (context is None) == isinstance(model.trunk, Decoder):
        raise ValueError(
            f"{who}: expected a context with a trunk that is a Decoder and only there, got a trunk that is "
            f"{type(model.trunk).__name__} and {'no' if context is None else 'a'} context; a Decoder looks at what an "
            "encoder gives"
        )
    if model.positions is not None and len(text) + length > model.positions.size:
        raise ValueError(
            f"{who}: expected tokens and length of at most {model.positions.size} together, which have positions, got "
            f"{len(text)} and {length}; ask for fewer"
        )
    return _tokens(model, params, text, length, context, choose, frozenset(stop), piece)


def _tokens(
    model: LanguageModel,
    params: Params,
    text: list[int],
    length: int,
    context: Array | None,
    choose: Choice,
    stop: frozenset[int],
    piece: int,
) -> Iterator[Token]:
    like = params["embedding"]["table"]
    backend = backend_of(like)
    model.check_params(params, like)
    model.trunk.check_params(params["trunk"], like)
    params = _constant(params)
    step, scores_of = _programs(model, backend)
    memory: Sequence[Any] = ()
    if context is not None:
        context = array(f"{_WHO}.generate", "context", context).stop_gradient(context)
        memory = model.trunk.remember(params["trunk"], context)
    capacity = len(text) + length
    if backend.jits:
        capacity = max(capacity, piece)
        capacity += -capacity % ROOM
    caches: Sequence[Any] = model.empty_cache(1, capacity, like=like)
    if backend.jits:
        caches = _at(0, caches, like)
    rewinds = all(kept is None or getattr(kept, "in_order", False) for kept in caches)
    done, n, count = 0, 0, len(text)
    while done < count:
        n = min(piece, count - done)
        if backend.jits and n < piece:  # programs of two sizes alone
            n = 1
            if count - done > 1 and rewinds:  # some tokens again, or one too often: both are overwritten
                done, n = max(count - piece, 0), piece
                caches = _at(done, caches, like)
        part = text[done : done + n]
        part += part[-1:] * (n - len(part))
        x, caches = step(params, backend.asarray([part], backend.xp.int32, like), caches, memory)
        done += n
    x = backend.take(x, backend.asarray([n - 1 - (done - count)], backend.xp.int32, like), -2)
    if done > count:
        done, caches = count, _at(count, caches, like)
    for _ in range(length):
        scores = choose(np.asarray(backend.to_numpy(scores_of(params, x)), np.float64), done)
        best = len(scores) - 1 - int(np.argmax(scores[::-1]))  # of equal ones the last
        if best in stop:
            return
        second = np.max(np.delete(scores, best)) if len(scores) > 1 else scores[best]
        yield Token(best, float(scores[best] - second))
        x, caches = step(params, backend.asarray([[best]], backend.xp.int32, like), caches, memory)
        done += 1


def _at(length: int, caches: Sequence[Any], like: Array) -> list[Any]:
    """The caches with so many tokens, an array each, so that one program serves every position."""
    backend = backend_of(like)
    return [
        None if kept is None else kept._replace(length=backend.asarray(length, backend.xp.int32, like))
        for kept in caches
    ]


@cache
def _programs(model: LanguageModel, backend: Backend) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The way of n tokens through the blocks, and what its end says of the next token.

        (params, tokens (1, n), caches, memory) -> vectors (1, n, embed_dim), and the caches with the n tokens
        (params, vectors (1, 1, embed_dim)) -> logits (vocabulary,)

    Equal blocks share a program: as one program, thirty of them compile thirty times as long. It may write into the
    cache that it is given, since nobody else has that one; a block that shares the keys and values of another reads its
    cache alone.
    """
    trunk = model.trunk

    def through(block: Any, params: Params, x: Array, cache: Any, *memory: Any) -> tuple[Array, Any]:
        found = block.run(params, x, *memory, cache=cache)
        return found.out, found.cache

    def last(params: Params, norm: Any, x: Array) -> Array:
        return model.logits(params, x if trunk.final_norm is None else trunk.final_norm(norm, x))[0, 0, :]

    def reading(block: Any, params: Params, x: Array, cache: Any) -> Array:
        return block.run(params, x, cache=cache).out

    shared = [source is not None for source in trunk.sources]
    programs = {
        (block, reads): backend.jit(partial(reading, block))
        if reads
        else backend.jit(partial(through, block), given_up=2)
        for block, reads in set(zip(trunk.blocks, shared, strict=True))
    }
    blocks = [programs[pair] for pair in zip(trunk.blocks, shared, strict=True)]
    enter, leave = backend.jit(model.vectors), backend.jit(last)

    def around(
        params: Params,
    ) -> Params:  # a program is given what it reads: each array costs a call some time
        return {name: x for name, x in params.items() if name != "trunk"}

    def step(
        params: Params, tokens: Array, caches: Sequence[Any], memory: Sequence[Any]
    ) -> tuple[Array, list[Any]]:
        start = () if model.positions is None else (caches[0].length,)
        x, longer = enter(around(params), tokens, *start), []
        for i, (block, earlier, source) in enumerate(zip(blocks, caches, trunk.sources, strict=True)):
            own = params["trunk"][f"block_{i}"]
            if source is None:
                x, all_of_them = block(own, x, earlier, *memory[i : i + 1])
                longer.append(all_of_them)
            else:
                x = block(own, x, longer[source])
                longer.append(None)
        return x, longer

    def scores(params: Params, x: Array) -> Any:
        return leave(around(params), params["trunk"].get("norm"), x)

    return step, scores


def _constant(params: Any) -> Any:
    """The params as constants: a text has no derivative, and no step should remember those before it."""
    if isinstance(params, Mapping):
        return {name: _constant(x) for name, x in params.items()}
    return backend_of(params).stop_gradient(params) if is_array(params) else params
