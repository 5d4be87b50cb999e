"""polyattn tune: which tiles suit the chip at hand?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from polyattn.cli.program import MISSING, USAGE, app, check_files, stop, write_file
from polyattn.cli.verifying import progress_bar
from polyattn.implementations.fused import FEW, Kernels, Trial, kernels_of
from polyattn.implementations.fused.measured import DTYPES, Measured, as_text
from polyattn.implementations.fused.tuning import WAYS, Try
from polyattn.implementations.fused.tuning import tune as measure
from polyattn.parity.bench import BENCHES
from polyattn.parity.report import visible
from polyattn.parity.terminal import print_whole

WHO = "polyattn tune"


class Usual(NamedTuple):
    width: list[int]
    dtype: list[str]
    length: list[int]


#: What is measured where nothing is said, on a chip and interpreted.
USUAL = {
    False: Usual([64, 128], ["bfloat16"], [8192]),
    True: Usual([8], ["float32"], [FEW + 16]),
}
INTERPRETED = 1024  # queries at most


@app.command(short_help="Which tiles suit the chip here?")
def tune(
    width: Annotated[
        list[int], typer.Option(help="Of queries and values; may be repeated.", min=1, max=2**16)
    ] = [],  # noqa: B006
    dtype: Annotated[
        list[str], typer.Option(metavar="NAME", help=f"{', '.join(DTYPES)}; may be repeated.")
    ] = [],  # noqa: B006
    length: Annotated[
        list[int],
        typer.Option(
            help=f"Queries, and as many keys; may be repeated. {FEW} and less are decoding, which is not tuned.",
            min=FEW + 1,
            max=2**20,
        ),
    ] = [],  # noqa: B006
    interpret: Annotated[
        bool,
        typer.Option(
            "--interpret", help="A trial of the command on any machine, slowly; it says nothing of a chip."
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the sizes here, for polyattn.implementations.tuned."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let --output write over a file that is there.")
    ] = False,
) -> None:
    """Run the fused kernel with tiles of every size that has room on the chip here, and say which is the fastest.

    Causal attention of one item with 8 heads, forward and with gradients. Nothing goes by what is measured unless it is
    told to: polyattn.implementations.tuned(FILE).

    \b
    polyattn tune --width 128 --dtype bfloat16 --length 8192 --output tiles.json

    Exit status: 0 measured, 2 wrong usage, or no tiles run, 3 there is no chip with a kernel here, or no JAX.
    """
    check_files(WHO, [output], new=None if force else output)
    if unknown := [name for name in dtype if name not in DTYPES]:
        raise stop(
            f"{WHO}: expected --dtype to be one of {', '.join(DTYPES)}, got {unknown[0][:40]!r}; choose one of them",
            USAGE,
        )
    kernels, chip = _kernels(interpret)
    usual = USUAL[interpret]
    trials = [
        Trial(w, d, n, interpret)
        for w in dict.fromkeys(width or usual.width)
        for d in dict.fromkeys(dtype or usual.dtype)
        for n in dict.fromkeys(length or usual.length)
    ]
    for trial in trials:
        if interpret and trial.length > INTERPRETED:
            raise stop(
                f"{WHO}: expected --length to be at most {INTERPRETED} with --interpret, got {trial.length}; try a "
                "shorter one",
                USAGE,
            )
        if reason := kernels.why_not(trial):
            raise stop(
                f"{WHO}: expected a problem that has a kernel here, got width {trial.width} in {trial.dtype}, and "
                f"{reason}; choose another",
                USAGE,
            )
    measured = [_measured(kernels, chip, trial) for trial in trials]
    if output is not None:
        write_file(WHO, output, as_text(measured))
        typer.echo(f"written to {output}", err=True)


def _kernels(interpret: bool) -> tuple[Kernels, tuple[str, str]]:
    """Those of the chip at hand, and what that is; or the end of the program."""
    found = kernels_of(BENCHES)
    if found is None:
        raise stop(
            f"{WHO}: expected JAX, whose kernels have tiles, got an environment without it; pip install 'polyattn[jax]'",
            MISSING,
        )
    library, kernels = found
    chip = kernels.chip(interpret)
    if chip is None:
        raise stop(
            f"{WHO}: expected a chip for which there are kernels, a TPU or a GPU, got none that {library} computes on; "
            "run it where one is, or add --interpret to try the command",
            MISSING,
        )
    return kernels, chip


def _measured(kernels: Kernels, chip: tuple[str, str], trial: Trial) -> Measured:
    """One trial, with its table."""
    with progress_bar() as progress:
        total = sum(len(kernels.candidates(trial, way)) for way in WAYS)
        task = progress.add_task("tune", total=total)
        found, tried = measure(kernels, chip, trial, lambda _: progress.update(task, advance=1))
    how = ", interpreted" if trial.interpret else ""
    typer.echo(f"{chip[0]}{how}: width {trial.width}, {trial.dtype}, {trial.length} queries and keys, causal")
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in ("", "rows", "keys", "seconds", ""):
        table.add_column(head, justify="left" if head == "" else "right")
    for some in tried:
        table.add_row(*_row(some, found))
    print_whole(table)
    if found is None:
        raise stop(
            f"{WHO}: expected tiles that run on {chip[0]}, got none of {len(tried)} that do for width {trial.width} in "
            f"{trial.dtype}; the table has the reasons: try another width or length",
            USAGE,
        )
    return found


def _row(tried: Try, found: Measured | None) -> list[str]:
    best = None if found is None else getattr(found, tried.way)
    is_best = best is not None and (tried.rows, tried.keys) == (best.rows, best.keys)
    way = tried.way if tried.way == "forward" else "forward and backward"
    seconds = "" if tried.seconds is None else f"{tried.seconds:.3g}"
    return [
        way,
        str(tried.rows),
        str(tried.keys),
        seconds,
        "best" if is_best else visible(tried.why_not or ""),
    ]
