"""The program: its exit statuses, the files that it writes, and how it ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import polyattn

__all__ = ["AGREE", "DISAGREE", "MISSING", "STATUSES", "USAGE", "app", "check_files", "main", "need", "stop", "write_file"]  # fmt: skip

AGREE, DISAGREE, USAGE, MISSING, DEFECT, INTERRUPTED, NO_READER = 0, 1, 2, 3, 4, 130, 141

#: Every way in which the program ends.
STATUSES = {
    AGREE: "done: all agree, or the output or function is right",
    DISAGREE: "some disagree, or the output or function is wrong",
    USAGE: "wrong usage, or a file cannot be read or written",
    MISSING: "a library asked for, an extra or a chip is missing",
    DEFECT: "a defect of polyattn itself, with its traceback",
    INTERRUPTED: "interrupted",
    NO_READER: "nobody reads the output any more",
}


class Program(TyperGroup):
    """The commands; whatever goes wrong has a status of its own, so that 1 always means disagreement."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [
            "verify",
            "info",
            "tune",
            "mask",
            "dialects",
            "diagnose",
            "check-model",
            "grade",
            "explain-text",
        ]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise stop("interrupted", INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(NO_READER) from None
        except OSError as error:
            raise stop(
                f"expected to read and write as asked, of which the system says: {error}; look at the disk and the rights",
                USAGE,
            ) from None
        except typer.Abort:
            raise
        except Exception as error:
            if hasattr(error, "exit_code"):  # the ways in which a command ends as it should
                raise
            traceback.print_exc()
            raise stop(
                "this is a defect of polyattn; please report it with the lines above", DEFECT
            ) from None


app = typer.Typer(
    cls=Program,
    help="Attention, written once: verify that the array libraries here agree on it.",
    epilog="\b\nExit status:\n" + "\n".join(f"  {status:<4}{says}" for status, says in STATUSES.items()),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"polyattn {polyattn.__version__}")
        raise typer.Exit(AGREE)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Attention, written once: verify that the array libraries here agree on it."""


def stop(sentence: str, status: int) -> typer.Exit:
    """What to raise after this sentence."""
    typer.echo(sentence if sentence.startswith("polyattn") else f"polyattn: {sentence}", err=True)
    return typer.Exit(status)


def need(module: str, why: str) -> None:
    """Ends the program where a module of the extra is missing, before the work and not after it."""
    if find_spec(module) is None:
        raise stop(
            f"expected {module}, which {why}, got an environment without it; pip install 'polyattn[cli]'",
            MISSING,
        )


def check_files(who: str, paths: Iterable[Path | None], *, new: Path | None = None) -> None:
    """Ends the program where a file cannot be written, before the work; `new` is one that may not be there."""
    given = [path for path in paths if path is not None]
    for i, path in enumerate(given):
        if path.is_dir():
            raise stop(f"{who}: expected a file to write, got the folder {path}; name a file in it", USAGE)
        if not path.parent.is_dir():
            raise stop(
                f"{who}: expected an existing folder for {path}, got {path.parent}; make it first", USAGE
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise stop(f"{who}: expected a file that may be written, got {path}; look at its rights", USAGE)
        if path in given[:i]:
            raise stop(f"{who}: expected a file for each report, got {path} twice; name another", USAGE)
    if new is not None and (new.exists() or new.is_symlink()):
        raise stop(
            f"{who}: expected a new file, got {new}, which is there; add --force, or name another", USAGE
        )


def write_file(who: str, path: Path, text: str) -> None:
    """Writes a file, or ends the program with what the system says."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise stop(
            f"{who}: expected to write {path}, of which the system says: {error}; name another file", USAGE
        ) from None


def main() -> None:
    """The command `polyattn`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a letter that a terminal lacks is spelt, not an error
            stream.reconfigure(errors="backslashreplace")
    status: Any = AGREE
    try:
        app()
    except SystemExit as end:
        status = end.code
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has nowhere to go
        if isinstance(error, BrokenPipeError):
            status = NO_READER
        else:
            print(
                f"polyattn: expected to write its output, of which the system says: {error}", file=sys.stderr
            )
            status = USAGE
    sys.exit(status)
