"""polyattn grade: which rules of attention does a student's function break?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from polyattn.cli.program import AGREE, DISAGREE, MISSING, USAGE, app, check_files, stop, write_file

WHO = "polyattn grade"


@app.command(short_help="Grade a student's attention.")
def grade(
    solution: Annotated[Path, typer.Argument(metavar="FILE", help="A Python file with the function.")],
    function: Annotated[
        str, typer.Option(metavar="NAME", help="The function: query, key, value in, output out.")
    ] = "attention",
    rules: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help='These alone, "scale,causal", taken or not; or all of them.'),
    ] = None,
    library: Annotated[
        str, typer.Option(metavar="NAME", help="Whose arrays the function takes: numpy, jax or torch.")
    ] = "numpy",
    seconds: Annotated[float, typer.Option(help="The limit for each call, and for loading the file.")] = 10.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the verdicts here.")
    ] = None,
) -> None:
    """Grade a function of attention rule by rule: which it keeps, and the smallest example of each that it breaks.

    It may also take mask, is_causal and scale by keyword, and leading axes; what it does not take is not attempted.

    The file is executed with your rights, in a process of its own. That is no sandbox: read it first, or grade where
    it can do no harm.

    \b
    polyattn grade solution.py
    polyattn grade solution.py --library torch --rules shapes,scale,causal --json grade.json

    Exit status: 0 no rule is broken, 1 some are, 2 wrong usage, or a file that cannot be loaded, 3 the library is
    missing.
    """
    from rich.console import Console
    from rich.text import Text

    from polyattn.parity import grade_file
    from polyattn.parity.bench import MissingBench
    from polyattn.parity.report import visible

    check_files(WHO, (json_file,))
    if json_file is not None and json_file.exists() and solution.exists() and json_file.samefile(solution):
        raise stop(
            f"{WHO}: expected --json to name another file than {solution}, got the same; name one", USAGE
        )
    names = None if rules is None else [name.strip() for name in rules.split(",") if name.strip()]
    try:
        found = grade_file(solution, function, rules=names, library=library, seconds=seconds, who=WHO)
    except MissingBench as error:
        raise stop(str(error), MISSING) from None
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise stop(str(error), USAGE) from None
    console = Console(highlight=False)
    for line, state in found.lines():
        console.print(Text(visible(line), {"kept": "green", "broken": "red"}.get(state, "")), soft_wrap=True)
    if json_file is not None:
        write_file(WHO, json_file, json.dumps(found.to_json(), indent=1, allow_nan=False) + "\n")
    raise typer.Exit(AGREE if found.passed else DISAGREE)
