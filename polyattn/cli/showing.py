"""polyattn info, mask, dialects: what is here, what a mask hides, what others say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from polyattn.arrays import backend_named
from polyattn.cli.program import MISSING, USAGE, app, check_files, stop, write_file
from polyattn.implementations.table import listing as implementations
from polyattn.parity.bench import BENCHES
from polyattn.parity.environment import environment
from polyattn.parity.terminal import print_whole

LARGEST = 500  # queries or keys of a picture


@app.command(short_help="Versions, and what auto would run.")
def info(
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help='A problem, "L=4096,H=8,causal=1": what auto would run and why. Keys: B, H, Hkv, L, S, D, E, '
            "causal, window, softcap, sinks, lse, and dtype=float32.",
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            metavar="CHIP",
            help="With --plan, there: tpu, gpu, v5e, v5p, v6e or h100, in tiles of which size.",
        ),
    ] = None,
) -> None:
    """The array libraries here: versions, settings, implementations and what they take; or what auto would run.

    With --platform nothing runs and no chip is needed: the call is traced for it.

    Exit status: 0 told, 2 wrong usage, 3 no library here has kernels for --platform.
    """
    if platform is not None and plan is None:
        raise stop(
            "polyattn info: expected --plan with --platform, got --platform alone; add a problem, --plan L=4096,H=8",
            USAGE,
        )
    if plan is not None:
        from polyattn.parity.auto import explain_plan, explain_target

        try:
            planned = explain_plan(plan) if platform is None else explain_target(plan, platform)
        except LookupError as error:
            raise stop(str(error), MISSING) from None
        except (ValueError, TypeError) as error:
            raise stop(str(error), USAGE) from None
        typer.echo("\n".join(planned))
        return
    lines = []
    for name in BENCHES:
        try:
            lines.append(f"{name} {BENCHES[name]().version}")
        except ImportError as error:
            lines.append(f"{name}: not installed ({error})")
    lines += [f"{fact}: {value}" for fact, value in environment().items()]
    lines += implementations(name for name in BENCHES if backend_named(name) is not None)
    typer.echo("\n".join(lines))


@app.command(short_help="Draw a mask.")
def mask(
    text: Annotated[
        str, typer.Argument(metavar="MASK", help='"causal & window(2, 0)", "key_lengths([3, 5])", ...')
    ],
    size: Annotated[
        int | None,
        typer.Option(help="Number of queries; if not given 8, or as the mask says.", min=1, max=LARGEST),
    ] = None,
    keys: Annotated[
        int | None, typer.Option(help="Number of keys; if not given as many as queries.", min=1, max=LARGEST)
    ] = None,
    offset: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|end",
            help="Position of the first query: 0 aligns the first rows, end the last ones.",
        ),
    ] = None,
    svg_file: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write the picture here instead.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let --svg write over a file that is there.")
    ] = False,
) -> None:
    """Draw a mask: # may attend, . may not.

    What attention refuses is refused here, in its words. Lists are lengths, one for each batch item, or the document
    of each token; items that differ have a picture each.

    \b
    polyattn mask "causal & window(2, 0)"
    polyattn mask causal --size 2 --keys 5 --offset end
    polyattn mask "key_lengths([3, 5]) & causal"
    polyattn mask "causal & documents([0, 0, 1])" --svg packed.svg

    Exit status: 0 drawn, 2 wrong usage.
    """
    from polyattn.draw import mask_text
    from polyattn.masks.grammar import parse_mask
    from polyattn.masks.picture import panels, svg

    who = "polyattn mask"
    check_files(who, [svg_file], new=None if force else svg_file)
    try:
        made = parse_mask(text)
        queries, keys = _sizes(made, size, keys)
        at = _first_position(made, queries, keys, offset)
        if svg_file is None:
            found = panels(made, queries, keys, query_offset=at)
            typer.echo("\n\n".join(f"{p.label}\n{mask_text(p.rows)}".lstrip("\n") for p in found))
        else:
            write_file(who, svg_file, svg(made, queries, keys, query_offset=at) + "\n")
    except (ValueError, TypeError) as error:
        raise stop(str(error), USAGE) from None


def _sizes(mask: Any, size: int | None, keys: int | None) -> tuple[int, int]:
    """Numbers of queries and keys, where they are not given those that the mask is made for."""
    own_queries, own_keys = mask.own_size()
    queries = size or own_queries or min(max(8, *mask.least_size()), LARGEST)
    return queries, keys or (own_keys if size is None else None) or queries


def _first_position(mask: Any, queries: int, keys: int, offset: str | None) -> int:
    """The position of query 0, of a problem that attention accepts."""
    from polyattn.arrays import numpy_backend
    from polyattn.problem import pose

    given: int | str | None = offset
    if offset is not None and offset != "end":
        if not re.fullmatch(r"[+-]?\d{1,9}", offset, re.ASCII):
            raise ValueError(
                f"polyattn mask: expected --offset to be an integer of at most nine digits, or end, got {offset[:40]!r}; "
                "it is the position of query 0"
            )
        given = int(offset)
    zeros, batch = numpy_backend().xp.zeros, mask.batch_size()
    rows, columns = (zeros((batch, 1, n, 1)) for n in (queries, keys))
    pose("polyattn mask", rows, columns, columns, mask=mask, query_offset=given)
    return keys - queries if given == "end" else int(given or 0)


@app.command(short_help="How libraries write attention.")
def dialects(
    first: Annotated[str | None, typer.Argument(metavar="[DIALECT]", help="For example torch.sdpa.")] = None,
    second: Annotated[
        str | None, typer.Argument(metavar="[DIALECT]", help="Another, for example jax.nn.")
    ] = None,
    call: Annotated[
        str,
        typer.Option(
            metavar="WORDS",
            help="The call that moves from one to the other, in the words of info --plan.",
        ),
    ] = "L=3,S=5,H=4,Hkv=2,D=8,causal=1",
    seed: Annotated[int, typer.Option(help="Of its random numbers.", min=0)] = 0,
) -> None:
    """How libraries write attention: all of them, what one answers, or which traps lie between two.

    Exit status: 0 told, 2 wrong usage.
    """
    from polyattn import dialects as known
    from polyattn.dialects import listing
    from polyattn.dialects.traps import explain_words

    try:
        if first is None:
            print_whole(listing.dialect_list())
        elif second is None:
            print_whole(listing.answer_list(known.dialect(first)))
        else:
            typer.echo(explain_words(first, second, call, seed))
    except (ValueError, TypeError) as error:
        raise stop(str(error), USAGE) from None
