"""The command line: verify, info, mask, dialects, diagnose."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
except ImportError:  # the library itself does not need them
    raise SystemExit("polyattn: the command line needs typer and rich; pip install 'polyattn[cli]'") from None

from polyattn.arrays import backend_named
from polyattn.implementations.table import listing
from polyattn.models.trial import real_input
from polyattn.parity.bench import BENCHES, MissingBench
from polyattn.parity.cases import cases
from polyattn.parity.environment import environment
from polyattn.parity.report import write
from polyattn.parity.terminal import print_whole, result_table
from polyattn.parity.verify import plan

__all__ = ["app", "main"]

AGREE, DISAGREE, USAGE, MISSING = 0, 1, 2, 3

app = typer.Typer(
    help="Attention, written once: verify that the array libraries here agree on it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def verify(
    backend: Annotated[
        list[str], typer.Option(help="numpy, strict, jax, torch or onnx; may be repeated.")
    ] = [],  # noqa: B006
    dtype: Annotated[
        list[str], typer.Option(help="float64, float32, float16 or bfloat16; may be repeated.")
    ] = [],  # noqa: B006
    case: Annotated[list[str], typer.Option(help="Cases with this in their name; may be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the random inputs.", min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="Write a JUnit report here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", help="Write a report, one page, here.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Let --html write over a file that is there.")
    ] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Ask the libraries' own functions instead, forward in float32.")
    ] = False,
) -> None:
    """Run every case on every backend and dtype, forward and gradients, and compare with the truth.

    Exit status: 0 all agree, 1 some disagree, 2 wrong usage, 3 a requested backend is missing. With --peers 0
    whatever they answer: their disagreement is no fault of this library.
    """
    for path in (json_file, junit_file, html_file):
        if path is not None and not path.parent.is_dir():
            raise _stop(
                f"polyattn verify: expected an existing folder for {path}, got {path.parent}; make it first",
                USAGE,
            )
    if html_file is not None and html_file.exists() and not force:  # before the work, not after it
        raise _stop(
            f"polyattn verify: expected a new file for the report, got {html_file}, which is there; add --force",
            USAGE,
        )
    if peers:
        if backend or dtype or junit_file is not None or html_file is not None:
            raise _stop(
                "polyattn verify: expected --peers with --case, --seed and --json alone; leave the others out",
                USAGE,
            )
        return _verify_peers(case, seed, json_file)
    try:
        more, notes = real_input()
        work = plan(backend, dtype, case, seed, more=more, notes=notes)
    except MissingBench as error:
        raise _stop(str(error), MISSING) from None
    except ValueError as error:
        raise _stop(str(error), USAGE) from None

    with _progress() as progress:
        task = progress.add_task("verify", total=sum(1 for _ in work.places()))
        for outcome in work.run():
            progress.update(task, advance=1, description=f"{outcome.bench} {outcome.dtype}")

    console = print_whole(result_table(work))
    for failed in work.disagreements:
        console.print(escape(f"  {failed}"), soft_wrap=True)
    for note in work.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)
    console.print(f"[{'green' if work.agrees else 'red'}]{escape(work.verdict)}", soft_wrap=True)
    if json_file is not None:
        json_file.write_text(json.dumps(work.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if junit_file is not None:
        junit_file.write_text(work.to_junit(), encoding="utf-8")
    if html_file is not None:
        write(work.to_html(), html_file, force=force)
    raise typer.Exit(AGREE if work.agrees else DISAGREE)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _verify_peers(words: list[str], seed: int, json_file: Path | None) -> None:
    """What the libraries' own functions make of the cases."""
    from polyattn.dialects import listing
    from polyattn.dialects.libraries import PEERS, library_of
    from polyattn.dialects.peers import peer_table

    try:
        more, _ = real_input()
        named = plan(["numpy"], only=words, more=more).cases
    except ValueError as error:
        raise _stop(str(error), USAGE) from None
    chosen = [c for c in cases() if c in named]
    if not chosen:
        raise _stop(
            f"polyattn verify: expected cases of the contract with --peers, got {', '.join(words)}, real input alone; name others",
            USAGE,
        )
    outcomes, notes = [], []
    with _progress() as progress:
        task = progress.add_task("peers", total=len(chosen) * len(PEERS))
        for name, peer in PEERS.items():
            progress.update(task, description=name)
            if isinstance(library := library_of(name), str):
                notes.append(f"{name} was not asked: {library}")
                progress.advance(task, len(chosen))
            for outcome in peer_table(chosen, [name], seed):
                outcomes.append(outcome)
                progress.advance(task)
            del peer
    console = print_whole(listing.peers(outcomes))
    for o in outcomes:
        if o.eta is None:
            console.print(escape(f"  {o.peer} {o.case!r}: {o.sentence}"), soft_wrap=True)
    for note in notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)
    if json_file is not None:
        rows = [
            {"case": o.case, "rules": o.rules, "peer": o.peer, "version": PEERS[o.peer].version, "agrees": o.agrees,
             "eta": None if o.eta is None or math.isinf(o.eta) else o.eta, "sentence": o.sentence}
            for o in outcomes
        ]  # fmt: skip
        json_file.write_text(json.dumps(rows, indent=1, allow_nan=False) + "\n", encoding="utf-8")


@app.command()
def info(
    plan: Annotated[
        str | None,
        typer.Option(
            help='A problem, "L=4096,H=8,causal=1": what auto would run and why. Keys: B, H, Hkv, L, S, D, E, '
            "causal, window, softcap, sinks, lse, and dtype=float32."
        ),
    ] = None,
) -> None:
    """The array libraries here: versions, settings, implementations and what they take; or what auto would run."""
    if plan is not None:
        from polyattn.parity.auto import explain_plan

        try:
            planned = explain_plan(plan)
        except ValueError as error:
            raise _stop(str(error), USAGE) from None
        typer.echo("\n".join(planned))
        return
    lines = []
    for name in BENCHES:
        try:
            lines.append(f"{name} {BENCHES[name]().version}")
        except ImportError as error:
            lines.append(f"{name}: not installed ({error})")
    lines += [f"{fact}: {value}" for fact, value in environment().items()]
    lines += listing(name for name in BENCHES if backend_named(name) is not None)
    typer.echo("\n".join(lines))


@app.command()
def mask(
    text: Annotated[str, typer.Argument(help='For example "causal & window(2, 0)".')],
    size: Annotated[int, typer.Option(help="Number of queries.", min=1, max=500)] = 8,
    keys: Annotated[
        int | None, typer.Option(help="Number of keys; as many as queries if not given.", min=1, max=500)
    ] = None,
    offset: Annotated[int, typer.Option(help="Position of the first query.")] = 0,
) -> None:
    """Draw a mask: # may attend, . may not."""
    from polyattn.masks.grammar import parse_mask

    try:
        picture = parse_mask(text).show(size, keys, query_offset=offset)
    except (ValueError, TypeError) as error:
        raise _stop(str(error), USAGE) from None
    typer.echo(picture)


@app.command()
def dialects(
    first: Annotated[str | None, typer.Argument(help="A dialect, for example torch.sdpa.")] = None,
    second: Annotated[str | None, typer.Argument(help="Another one, for example jax.nn.")] = None,
    call: Annotated[
        str, typer.Option(help="The call that moves from one to the other, in the words of info --plan.")
    ] = "L=3,S=5,H=4,Hkv=2,D=8,causal=1",
    seed: Annotated[int, typer.Option(help="Of its random numbers.", min=0)] = 0,
) -> None:
    """How libraries write attention: all of them, what one answers, or which traps lie between two."""
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
        raise _stop(str(error), USAGE) from None


@app.command()
def diagnose(
    npz: Annotated[
        Path, typer.Option("--npz", help="A file with output, query, key, value and what was meant.")
    ],
    dtype: Annotated[
        str | None, typer.Option(help="Of the implementation, if its output is stored wider.")
    ] = None,
) -> None:
    """Which convention or mistake explains an observed output of attention.

    The file may also have mask (bool), bias, sinks, scale, is_causal, query_offset, softcap, window, embed_dim and
    layout. Exit status: 0 the output is what was meant, 1 it is not, 2 wrong usage.
    """
    from polyattn.parity.casefile import read
    from polyattn.parity.diagnosis import diagnose as search

    try:
        arrays, context = read(npz)
        found = search(*arrays, dtype=dtype, **context)
    except FileNotFoundError:
        raise _stop(
            f"polyattn diagnose: expected a file, got {str(npz)!r}, which is not there; name one", USAGE
        ) from None
    except (ValueError, TypeError) as error:
        raise _stop(str(error), USAGE) from None
    typer.echo(str(found))
    raise typer.Exit(AGREE if found.agrees else DISAGREE)


def _stop(sentence: str, status: int) -> typer.Exit:
    typer.echo(sentence if sentence.startswith("polyattn") else f"polyattn: {sentence}", err=True)
    return typer.Exit(status)


def main() -> None:
    app()
