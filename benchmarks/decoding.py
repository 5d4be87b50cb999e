"""Decoding: tokens of a language model, and steps beside each kind of cache.

    python benchmarks/decoding.py                    every table, with ratios and what they are made of
    python benchmarks/decoding.py --table paged      tables with this in their name
    python benchmarks/decoding.py --keep             also writes the ratios to benchmarks/results/decoding.txt
    python benchmarks/decoding.py --smoke            tiny sizes, to see that everything runs

    model        SmolLM2-135M beside transformers on the same file, float32: tokens a second, seconds to the first one, and
                 the bytes of all weights a token over what a copy reads and writes in that time
    circular     a step behind 1k, 10k, 100k tokens: a circular cache of 1024, and a linear one with room for all
    latent       absorbed against expanded latent attention of one query, over the number of tokens
    paged        a step beside a paged cache against one beside a linear cache, over batch and tokens
    recurrence   linear attention in chunks against the recurrence, token by token, over the number of tokens

A figure is a median, a ratio one of two medians of the same run; above 1 the first one named is faster. Contestants are
shuffled in every round, each runs after a pause and once untimed, and on JAX all are compiled.
"""

from __future__ import annotations

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # NumPy is to run as it is installed
os.environ.pop("OPENBLAS_L2_SIZE", None)

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import recurrence as chunks

from polyattn.arrays import backend_of
from polyattn.caches import CircularCache, KVCache, PagedCache, cached_attention
from polyattn.generation import generate
from polyattn.latent import latent_attention
from polyattn.layers import Embedding, Encoder, LanguageModel
from polyattn.models import smollm2
from polyattn.testing import load_bench

LIBRARIES = ("numpy", "jax", "torch")
RESULTS = Path(__file__).parent / "results" / "decoding.txt"
QUESTION = "Why is the sky blue? Explain it to a child of seven, and then to its teacher."
Run = Callable[[], Any]
Row = dict[str, Any]
Table = Callable[[bool], Iterator[Row]]
TABLES: dict[str, Table] = {}


def table(f: Table) -> Table:
    TABLES[f.__name__] = f
    return f


def medians(runs: dict[str, Run], smoke: bool) -> dict[str, float]:
    """Median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # compiles
    for number in range(1 if smoke else 9):
        for name, run in random.Random(number).sample(list(runs.items()), len(runs)):
            time.sleep(0.0 if smoke else 0.02)
            run()
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(found) for name, found in times.items()}


def against(first: str, second: str, runs: dict[str, Run], smoke: bool) -> Row:
    """Milliseconds of two, and the second over the first."""
    found = medians({name: runs[name] for name in (first, second)}, smoke)
    ms = {f"{name}, ms": 1e3 * seconds for name, seconds in found.items()}
    return ms | {f"{first} : {second}": found[second] / found[first]}


def libraries(smoke: bool) -> tuple[str, ...]:
    return LIBRARIES[:1] if smoke else LIBRARIES


def normal(library: str, *shape: int) -> Any:
    return load_bench(library).array(np.random.default_rng(0).normal(size=shape), "float32")


# a language model


def written_by_transformers(model: Any, attention: str, text: list[int], length: int) -> Iterator[int]:
    """Greedy tokens, in a loop that does nothing else: `generate` of transformers takes longer."""
    import torch

    model.set_attn_implementation(attention)
    given, past = torch.tensor([text]), None
    with torch.no_grad():
        for _ in range(length):
            out = model(given, past_key_values=past, use_cache=True, logits_to_keep=1)
            given, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            yield int(given)


def loaded(smoke: bool) -> tuple[LanguageModel, Callable[[str], Any], Any, list[int]]:
    """Our model, its params in a library, the model of transformers, and a text."""
    import torch
    import transformers

    if smoke:
        ours = LanguageModel(Embedding(64, smollm2.WIDTH), Encoder(smollm2.BLOCK, 1, final_norm=smollm2.NORM))
        sizes = {"vocab_size": 64, "hidden_size": 36, "intermediate_size": 64, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))
        return ours, lambda library: ours.init(0, like=normal(library)), theirs.eval(), [1, 2, 3]
    path = smollm2.model_file()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, local_files_only=True, dtype=torch.float32
    )
    text = smollm2.load(normal("numpy")).tokens.chat([{"role": "user", "content": QUESTION}])
    return smollm2.SMOLLM2, lambda library: smollm2.load(normal(library)).params, theirs.eval(), text


def copied(size: int) -> float:
    """Bytes a second that a copy of so many numbers reads and writes, the fastest of five."""
    import torch

    source, target, found = torch.ones(size), torch.empty(size), []
    for _ in range(5):
        before = time.perf_counter()
        target.copy_(source)
        found.append(2 * source.nbytes / (time.perf_counter() - before))
    return max(found)


def spaced(tokens: Iterator[Any]) -> list[float]:
    """The seconds before each token."""
    times = [time.perf_counter()]
    times += [time.perf_counter() for _ in tokens]
    return [after - before for before, after in pairwise(times)]


@table
def model(smoke: bool) -> Iterator[Row]:
    ours, params_in, theirs, text = loaded(smoke)
    length, rounds = (2, 1) if smoke else (16, 3)
    peers = {f"transformers {kind}": kind for kind in ("eager", "sdpa")}
    write: dict[str, Callable[[], Iterator[Any]]] = {
        peer: partial(written_by_transformers, theirs, kind, text, length) for peer, kind in peers.items()
    }
    for library in LIBRARIES:
        write[f"polyattn {library}"] = partial(generate, ours, params_in(library), text, length=length)
    cold = {name: spaced(tokens())[0] for name, tokens in write.items()}
    firsts: dict[str, list[float]] = {name: [] for name in write}
    others: dict[str, list[float]] = {name: [] for name in write}
    beyond_caches = 2**10 if smoke else 2**26
    speed = copied(beyond_caches)
    for number in range(rounds):
        for name, tokens in random.Random(number).sample(list(write.items()), len(write)):
            time.sleep(0.0 if smoke else 0.5)
            seconds = spaced(tokens())
            firsts[name].append(seconds[0])
            others[name] += seconds[1:]
        speed = max(speed, copied(beyond_caches))
    size = sum(
        x.nbytes for x in theirs.parameters()
    )  # the table of the embedding serves as the head, so all is read
    first, each = ({name: statistics.median(x) for name, x in times.items()} for times in (firsts, others))
    for name in write:
        row = {"contestant": name, "tokens/s": 1 / each[name], "first token, s": first[name]}
        row |= {f"tokens/s : {peer}": each[peer] / each[name] for peer in peers}
        row |= {f"first token : {peer}": first[peer] / first[name] for peer in peers}
        yield row | {
            "share of bandwidth": size / each[name] / speed,
            "first call : later": cold[name] / first[name],
        }


# caches


def stepping(cache: Any, tokens: int, heads: int = 8) -> Run:
    """A step behind so many tokens: one more is appended, and its query attends to all that are there."""
    batch, kv_heads, width = 1 if cache.key.ndim < 4 else cache.key.shape[0], *cache.key.shape[-3::2]
    backend = backend_of(cache.key)
    library = backend.name
    if backend.jits:
        cache = cache._replace(length=backend.asarray(0, backend.xp.int32, cache.key) + 0 * cache.length)
    prompt = normal(library, batch, kv_heads, tokens, width)
    query, token = normal(library, batch, heads, 1, width), normal(library, batch, kv_heads, 1, width)

    def step(cache: Any, query: Any, token: Any) -> tuple[Any, Any]:
        cache = cache.append(token, token)
        return cache, cached_attention(query, cache, is_causal=True)

    # One more token, so that a circular cache has the shape of its ring again.
    held, compiled = [cache.append(prompt, prompt).append(token, token)], backend.jit(step, given_up=0)

    def run() -> None:
        held[0], out = compiled(held[0], query, token)
        backend.to_numpy(out)  # waits

    return run


SPARE = 64  # tokens that the steps append


@table
def circular(smoke: bool) -> Iterator[Row]:
    window, counts = (4, (8, 16)) if smoke else (1024, (1_000, 10_000, 100_000))
    for library in libraries(smoke):
        like, runs = normal(library), {}
        for n in counts:
            runs[f"circular {n}"] = stepping(CircularCache.empty(1, 2, window, 64, like=like), n)
            runs[f"linear {n}"] = stepping(KVCache.empty(1, 2, n + SPARE, 64, like=like), n)
        found = medians(runs, smoke)
        start = found[f"circular {counts[0]}"]
        for n in counts:
            ring, line = found[f"circular {n}"], found[f"linear {n}"]
            row = {"library": library, "tokens": n, "circular, ms": 1e3 * ring, "linear, ms": 1e3 * line}
            yield row | {f"circular : behind {counts[0]}": start / ring, "circular : linear": line / ring}


@table
def paged(smoke: bool) -> Iterator[Row]:
    size, batches, counts = (4, (2,), (8,)) if smoke else (128, (1, 4, 16), (1024, 8192))
    for library in libraries(smoke):
        for batch in batches:
            for n in counts:
                each = -(-(n + SPARE) // size)
                pages = {"pages": batch * each, "page_size": size, "pages_per_sequence": each}
                like = normal(library)
                runs = {
                    "paged": stepping(PagedCache.empty(batch, 2, 64, **pages, like=like), n),
                    "linear": stepping(KVCache.empty(batch, 2, n + SPARE, 64, like=like), n),
                }
                yield {"library": library, "batch": batch, "tokens": n} | against(
                    "paged", "linear", runs, smoke
                )


@table
def latent(smoke: bool) -> Iterator[Row]:
    heads, rank, shared, width = (2, 8, 4, 8) if smoke else (16, 512, 64, 128)  # those of DeepSeek-V2-Lite
    for library in libraries(smoke):
        for n in (8,) if smoke else (256, 1024, 4096):
            query, keys = (
                normal(library, 1, heads, 1, width + shared),
                normal(library, 1, 1, n, rank + shared),
            )
            maps = normal(library, rank, heads, width)
            backend = backend_of(query)

            def run(absorbed: bool) -> Run:
                given, to_numpy = (query, keys, maps, maps), backend.to_numpy  # noqa: B023
                compiled = backend.jit(partial(latent_attention, absorbed=absorbed))  # noqa: B023
                return lambda: to_numpy(compiled(*given))

            runs = {"absorbed": run(True), "expanded": run(False)}
            yield {"library": library, "tokens": n} | against("absorbed", "expanded", runs, smoke)


@table
def recurrence(smoke: bool) -> Iterator[Row]:
    for rule, size in chunks.CHUNK.items():
        for library in libraries(smoke):
            for n in (2,) if smoke else (1, 16, 128, 1024):
                given = chunks.arrays(rule, n)
                runs = {
                    "chunks": chunks.work(library, given, size),
                    "recurrence": chunks.work(library, given, 1),
                }
                row = {"rule": rule, "library": library, "tokens": n}
                yield row | against("chunks", "recurrence", runs, smoke)


# what is said of it


def lines(rows: list[Row], *, ratios: bool) -> list[str]:
    """A table; ratios: without what was measured in a unit."""
    names = [
        name for name in rows[0] if not (ratios and (name.endswith((", s", ", ms")) or name == "tokens/s"))
    ]

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    cells = [[f"{x:.3g}" if isinstance(x := row[name], float) else str(x) for name in names] for row in rows]
    rule = ["--:" if isinstance(rows[0][name], (int, float)) else "---" for name in names]
    return [line(names), line(rule), *map(line, cells)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", default="", help="tables with this in their name")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--keep", action="store_true", help=f"write the ratios to {RESULTS.name}")
    args = parser.parse_args()
    kept = [f"Ratios of medians in one run, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}."]
    for name, make in TABLES.items():
        if args.table in name:
            rows = list(make(args.smoke))
            print(name, *lines(rows, ratios=False), "", sep="\n", flush=True)
            kept += ["", name, *lines(rows, ratios=True)]
            if args.keep:
                RESULTS.write_text("\n".join(kept) + "\n")


if __name__ == "__main__":
    main()
