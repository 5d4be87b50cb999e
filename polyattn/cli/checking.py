"""polyattn check-model: does a port compute what a recorded model computes?"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from polyattn.cli.program import AGREE, DISAGREE, MISSING, USAGE, app, check_files, need, stop, write_file

WHO = "polyattn check-model"


@app.command("check-model", short_help="Does a port compute what a recorded model computes?")
def check_model(
    port: Annotated[
        str, typer.Argument(metavar="MODULE:NAME", help="What makes the port, or the port itself.")
    ],
    golden: Annotated[Path, typer.Argument(metavar="FILE", help="What Record.save wrote.")],
    name: Annotated[
        list[str],
        typer.Option(
            "--name", metavar="THEIRS=OURS", help='As "model.layers.*.mlp=layers.*.mlp"; may be repeated.'
        ),
    ] = [],  # noqa: B006
    itself: Annotated[
        bool, typer.Option("--itself", help="The function is the port, rather than what makes it.")
    ] = False,
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
) -> None:
    """Which components of a port are wrong, each by itself, and why; the reference need not be installed.

    MODULE is imported, from the current folder too, and its code runs with your rights. A function NAME is called without
    arguments and returns the port: a module, a pair of a layer and its parameters, or a function that calls
    polyattn.parity.tap.

    \b
    polyattn check-model port:build golden.npz
    polyattn check-model port:forward golden.npz --itself --html report.html

    Exit status: 0 the port agrees, 1 it does not, 2 wrong usage, or a file that holds no recorded model, 3 a library is
    missing.
    """
    from polyattn.parity import check_model as check
    from polyattn.parity.report import visible

    check_files(WHO, (json_file, junit_file, html_file), new=None if force else html_file)
    if html_file is not None:
        need("jinja2", "makes reports")
    names = dict(_pair(word) for word in name) or None
    try:
        model = _made(port, itself)
        found = check(model, golden, names=names)
    except ImportError as error:
        raise stop(f"{WHO}: expected what {port} needs, got: {error}; install it", MISSING) from None
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise stop(str(error), USAGE) from None
    typer.echo(visible(str(found)))
    if json_file is not None:
        write_file(WHO, json_file, json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    if junit_file is not None:
        write_file(WHO, junit_file, found.to_junit())
    if html_file is not None:
        write_file(WHO, html_file, found.to_html())
    raise typer.Exit(AGREE if found.agrees else DISAGREE)


def _pair(word: str) -> tuple[str, str]:
    theirs, equals, ours = word.partition("=")
    if not equals or not theirs or not ours:
        raise stop(
            f"{WHO}: expected --name THEIRS=OURS, got {word[:60]!r}; write model.layers.*.mlp=layers.*.mlp",
            USAGE,
        )
    return theirs, ours


def _made(port: str, itself: bool) -> Any:
    """The port that MODULE:NAME stands for."""
    module, colon, name = port.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"{WHO}: expected MODULE:NAME, got {port[:60]!r}; write my_port:build")
    sys.path.insert(0, "")
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{WHO}: expected a module, got {module[:60]!r}, which is not found; run it in the folder of {module[:60]}.py"
        ) from None
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{WHO}: expected a module that can be imported, got {module[:60]!r}, which raises {_said(error)}; mend it"
        ) from error
    finally:
        sys.path.remove("")
    if not hasattr(loaded, name):
        raise ValueError(
            f"{WHO}: expected a name in {module}, got {name[:60]!r}, which it has not; look at it"
        )
    found = getattr(loaded, name)
    if itself or not _makes(found):
        return found
    try:
        return found()
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{WHO}: expected {port[:60]} to return the port when it is called without arguments, got {_said(error)}; add --itself if "
            "it is the port"
        ) from error


def _makes(found: Any) -> bool:
    """Whether it is a function or a class, rather than a model that can be called too."""
    return isinstance(found, type) or hasattr(found, "__code__")


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"
