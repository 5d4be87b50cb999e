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
) -> None:
    """Which convention or mistake explains an observed output of attention.

    The file, of numpy.savez, may also have mask (bool), bias, sinks, scale, is_causal, query_offset, softcap,
    window, embed_dim and layout.

    Exit status: 0 the output is what was meant, 1 it is not, 2 wrong usage, or a file that does not hold that.
    """
    from polyattn.parity.casefile import read
    from polyattn.parity.diagnosis import diagnose as search

    try:
        arrays, context = read(npz)
        found = search(*arrays, dtype=dtype, **context)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise stop(str(error), USAGE) from None
    typer.echo(str(found))
    raise typer.Exit(AGREE if found.agrees else DISAGREE)
