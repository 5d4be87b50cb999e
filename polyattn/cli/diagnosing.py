"""polyattn diagnose: why is an output of attention wrong?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyattn.cli.program import AGREE, DISAGREE, USAGE, app, stop


@app.command(short_help="Why is an output of attention wrong?")
def diagnose(
    npz: Annotated[
        Path,
        typer.Option(
            "--npz", metavar="FILE", help="A file with output, query, key, value and what was meant."
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the implementation, if its output is stored wider."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="LIST", help="Only these query rows, as in 0,5,8-11; the output has them, or all."
        ),
    ] = None,
    heads: Annotated[str | None, typer.Option(metavar="LIST", help="Only these heads, likewise.")] = None,
    where: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A file of numpy.savez with one array of bools: which elements of the output count.",
        ),
    ] = None,
    decimals: Annotated[
        int | None, typer.Option(metavar="N", help="The output was printed to so many decimals.")
    ] = None,
) -> None:
    """Which convention or mistake explains an observed output of attention.

    The file, of numpy.savez, may also have mask (bool), bias, sinks, scale, is_causal, query_offset, softcap, alibi,
    window, rotary_base, rotary_width, rotary_interleaved, embed_dim and layout; and rows, heads, where and decimals.

    Exit status: 0 the output is what was meant, 1 it is not, 2 wrong usage, or a file that does not hold that.
    """
    from polyattn.parity.casefile import read, read_bools
    from polyattn.parity.diagnosis import diagnose as search

    try:
        arrays, context = read(npz)
        asked = {
            "rows": None if rows is None else _indices("--rows", rows),
            "heads": None if heads is None else _indices("--heads", heads),
            "where": None if where is None else read_bools(where),
            "decimals": decimals,
        }
        context |= {name: x for name, x in asked.items() if x is not None}
        found = search(*arrays, dtype=dtype, **context)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise stop(str(error), USAGE) from None
    typer.echo(str(found))
    raise typer.Exit(AGREE if found.agrees else DISAGREE)


def _indices(option: str, text: str) -> list[int]:
    """Indices as people write them.

    >>> _indices("--rows", "0, 5, 8-11")
    [0, 5, 8, 9, 10, 11]
    """
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = [first, last if dash else first]
        if not all(end.isdecimal() and len(end) < 8 for end in ends) or int(ends[0]) > int(ends[1]):
            raise ValueError(
                f"polyattn diagnose: expected {option} to be indices and ranges, got {text[:40]!r}; write {option} 0,5,8-11"
            )
        found += range(int(ends[0]), int(ends[1]) + 1)
    return found
