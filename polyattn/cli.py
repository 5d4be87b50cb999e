"""The command line: verify, info, mask."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.table import Table
except ImportError:  # the library itself does not need them
    raise SystemExit("polyattn: the command line needs typer and rich; pip install 'polyattn[cli]'") from None

from polyattn.parity.verify import SHORT, MissingBackend, Verification, plan
from polyattn.testing import BENCHES, Outcome

AGREE, DISAGREE, USAGE, MISSING = 0, 1, 2, 3

app = typer.Typer(
    help="Attention, written once: verify that the array libraries here agree on it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.command()
def verify(
    backend: Annotated[list[str], typer.Option(help="numpy, strict, jax or torch; may be repeated.")] = [],  # noqa: B006
    dtype: Annotated[
        list[str], typer.Option(help="float64, float32, float16 or bfloat16; may be repeated.")
    ] = [],  # noqa: B006
    case: Annotated[list[str], typer.Option(help="Cases with this in their name; may be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Of the random inputs.", min=0)] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
    junit_file: Annotated[Path | None, typer.Option("--junit", help="Write a JUnit report here.")] = None,
) -> None:
    """Run every case on every backend and dtype, forward and gradients, and compare with the truth.

    Exit status: 0 all agree, 1 some disagree, 2 wrong usage, 3 a requested backend is missing.
    """
    for path in (json_file, junit_file):
        if path is not None and not path.parent.is_dir():
            raise _stop(f"expected an existing folder for {path}, got {path.parent}; make it first", USAGE)
    try:
        work = plan(backend, dtype, case, seed)
    except MissingBackend as error:
        raise _stop(str(error), MISSING) from None
    except ValueError as error:
        raise _stop(str(error), USAGE) from None

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as progress:
        task = progress.add_task("verify", total=len(work.cases) * len(work.columns))
        for outcome in work.run():
            progress.update(task, advance=1, description=f"{outcome.bench} {outcome.dtype}")

    console = Console()
    table = result_table(work)
    if not console.is_terminal:  # a file or a pipe has no width: never cut a number
        console = Console(width=Console(width=10_000).measure(table).maximum)
    console.print(table)
    for failed in work.disagreements:
        console.print(escape(f"  {failed}"), soft_wrap=True)
    for note in work.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)
    console.print(f"[{'green' if work.agrees else 'red'}]{escape(work.verdict)}", soft_wrap=True)
    if json_file is not None:
        json_file.write_text(json.dumps(work.to_json(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if junit_file is not None:
        junit_file.write_text(work.to_junit(), encoding="utf-8")
    raise typer.Exit(AGREE if work.agrees else DISAGREE)


def result_table(work: Verification) -> Table:
    """Rows are cases, columns backends and dtypes, cells eta: the error in units of rounding."""
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        title="eta: error over what rounding explains (accepted up to 4)",
        title_justify="left",
    )
    table.add_column("case", no_wrap=True)
    for bench, dtype in work.columns:
        table.add_column(f"{bench}\n{SHORT[dtype]}", justify="right", no_wrap=True)
    for c in work.cases:
        cells = [_cell(work.outcomes[c.name, bench, dtype]) for bench, dtype in work.columns]
        table.add_row(escape(c.name), *cells)
    return table


def _cell(outcome: Outcome) -> str:
    if outcome.error:
        return "[red]error ✗"
    number = (
        f"{outcome.eta:.2f}"
        if outcome.eta < 100
        else "inf"
        if math.isinf(outcome.eta)
        else f"{outcome.eta:.0e}"
    )
    return f"[green]{number} ✓" if outcome.agrees else f"[red]{number} ✗"


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
    """The array libraries here: versions, devices, threads, precision settings; or what auto would run."""
    if plan is not None:
        from polyattn.parity.explain import explain_plan

        try:
            lines = explain_plan(plan)
        except ValueError as error:
            raise _stop(str(error), USAGE) from None
        for line in lines:
            typer.echo(line)
        return
    console = Console()
    console.print(f"python {platform.python_version()}, {os.cpu_count()} cores", highlight=False)
    for name, make in BENCHES.items():
        try:
            version = make().version
        except ImportError as error:
            console.print(escape(f"{name}: not installed ({error})"), highlight=False, soft_wrap=True)
            continue
        console.print(
            escape(f"{name} {version}: {'; '.join(_settings(name))}"), highlight=False, soft_wrap=True
        )


def _settings(name: str) -> list[str]:
    """What may change the numbers of a library."""
    if name == "jax":
        import jax

        return [
            f"devices {', '.join(map(str, jax.devices()))}",
            f"x64 {'on' if jax.config.jax_enable_x64 else 'off'}",
            f"default matmul precision {jax.config.jax_default_matmul_precision or 'default'} (attention asks for highest)",
        ]
    if name == "torch":
        import torch

        devices = [
            "cpu",
            *(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())),
        ]
        return [
            f"devices {', '.join(devices)}",
            f"threads {torch.get_num_threads()}",
            f"float32 matmul precision {torch.get_float32_matmul_precision()}",
        ]
    return ["devices cpu"]


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
    from polyattn.grammar import parse_mask

    try:
        picture = parse_mask(text).show(size, keys, query_offset=offset)
    except (ValueError, TypeError) as error:
        raise _stop(str(error), USAGE) from None
    typer.echo(picture)


def _stop(sentence: str, status: int) -> typer.Exit:
    typer.echo(f"polyattn: {sentence}", err=True)
    return typer.Exit(status)


def main() -> None:
    app()
