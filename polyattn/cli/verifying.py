"""polyattn verify: do the libraries here agree with the truth?"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from polyattn.cli.program import AGREE, DISAGREE, MISSING, USAGE, app, check_files, need, stop, write_file
from polyattn.models.real import real_input
from polyattn.parity.bench import MissingBench
from polyattn.parity.cases import cases
from polyattn.parity.terminal import print_grid, result_grid
from polyattn.parity.verify import QUICK, plan

WHO = "polyattn verify"


@app.command(short_help="Do the libraries here agree with the truth?")
def verify(
    backend: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="numpy, strict, jax, torch, onnx, ...; may be repeated."),
    ] = [],  # noqa: B006
    dtype: Annotated[
        list[str],
        typer.Option(metavar="NAME", help="float64, float32, float16 or bfloat16; may be repeated."),
    ] = [],  # noqa: B006
    case: Annotated[
        list[str], typer.Option(metavar="WORDS", help="Cases with this in their name; may be repeated.")
    ] = [],  # noqa: B006
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help=f"Ten seconds: {len(QUICK)} of the cases, in float32, on everything that is installed.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the random inputs.", min=0)] = 0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results here.")
    ] = None,
    junit_file: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Write a JUnit report here.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a report, one page, here.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let --html write over a file that is there.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Ask the libraries' own functions instead, forward in float32.")
    ] = False,
) -> None:
    """Run every case on every backend and dtype, forward and gradients, and compare with the truth.

    Exit status: 0 all agree, 1 some disagree, 2 wrong usage, or a report that cannot be written, 3 a requested
    backend is missing. With --peers 0 whatever they answer: their disagreement is no fault of this library.
    """
    check_files(WHO, (json_file, junit_file, html_file), new=None if force else html_file)
    if peers:
        if backend or dtype or junit_file is not None or html_file is not None:
            raise stop(
                f"{WHO}: expected --peers with --case, --quick, --seed and --json alone; leave the others out",
                USAGE,
            )
        return _verify_peers(case, quick, seed, json_file)
    if html_file is not None:
        need("jinja2", "makes reports")
    try:
        more, notes = real_input()
        work = plan(backend, dtype, case, seed, more=more, notes=notes, quick=quick)
    except MissingBench as error:
        raise stop(str(error), MISSING) from None
    except ValueError as error:
        raise stop(str(error), USAGE) from None

    typer.echo(work.announcement, err=True)
    with progress_bar() as progress:
        task = progress.add_task("verify", total=sum(1 for _ in work.places()))
        for outcome in work.run():
            progress.update(task, advance=1, description=f"{outcome.bench} {outcome.dtype}")

    console = print_grid(result_grid(work))
    for failed in work.disagreements:
        console.print(f"  {failed}", soft_wrap=True, markup=False)
    for note in work.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    console.print(work.verdict, style="green" if work.agrees else "red", soft_wrap=True, markup=False)
    if json_file is not None:
        write_file(WHO, json_file, json.dumps(work.to_json(), indent=1, allow_nan=False) + "\n")
    if junit_file is not None:
        write_file(WHO, junit_file, work.to_junit())
    if html_file is not None:
        write_file(WHO, html_file, work.to_html())
    raise typer.Exit(AGREE if work.agrees else DISAGREE)


def progress_bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _verify_peers(words: list[str], quick: bool, seed: int, json_file: Path | None) -> None:
    """What the libraries' own functions make of the cases."""
    from polyattn.dialects import listing
    from polyattn.dialects.libraries import PEERS, library_of
    from polyattn.dialects.peers import peer_table

    try:
        more, _ = real_input()
        named = plan(["numpy"], only=words, more=more, quick=quick).cases
    except ValueError as error:
        raise stop(str(error), USAGE) from None
    chosen = [c for c in cases() if c in named]
    if not chosen:
        raise stop(
            f"{WHO}: expected cases of the contract with --peers, got {', '.join(words)}, real input alone; name others",
            USAGE,
        )
    typer.echo(f"{len(chosen)} cases, asked of {len(PEERS)} functions: {', '.join(PEERS)}", err=True)
    outcomes, notes = [], []
    with progress_bar() as progress:
        task = progress.add_task("peers", total=len(chosen) * len(PEERS))
        for name in PEERS:
            progress.update(task, description=name)
            if isinstance(library := library_of(name), str):
                notes.append(f"{name} was not asked: {library}")
                progress.advance(task, len(chosen))
            for outcome in peer_table(chosen, [name], seed):
                outcomes.append(outcome)
                progress.advance(task)
    console = print_grid(listing.peers(outcomes))
    for o in outcomes:
        if o.sentence:
            console.print(f"  {o.peer} {o.case!r}: {o.sentence}", soft_wrap=True, markup=False)
    for note in notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    if json_file is not None:
        rows = [
            {"case": o.case, "rules": o.rules, "peer": o.peer, "version": PEERS[o.peer].version, "agrees": o.agrees,
             "eta": None if o.eta is None or math.isinf(o.eta) else o.eta, "sentence": o.sentence}
            for o in outcomes
        ]  # fmt: skip
        write_file(WHO, json_file, json.dumps(rows, indent=1, allow_nan=False) + "\n")
