"""polyattn explain-text: where does a pretrained model look?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyattn.cli.program import MISSING, USAGE, app, check_files, need, stop, write_file

WHO = "polyattn explain-text"


@app.command("explain-text", short_help="A page on where a model looks.")
def explain_text(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A sentence; at most 96 tokens.")],
    html_file: Annotated[Path, typer.Option("--html", metavar="FILE", help="Write the page here.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="minilm or smollm2.")] = "minilm",
    layer: Annotated[int, typer.Option(help="Shown first, from 0.")] = 0,
    head: Annotated[int, typer.Option(help="Shown first, from 0.")] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Let --html write over a file that is there.")
    ] = False,
) -> None:
    """Where the attention of a pretrained model looks: one page that computes it again, step by step.

    It opens in a browser without a network: every head, every weight with the numbers that make it, other masks,
    scales, caps and sinks, the softmax tile by tile, and scores that may be retyped.

    \b
    polyattn explain-text "The cat sat on the mat because it was tired" --html page.html

    Exit status: 0 written, 2 wrong usage, or a file that cannot be written, 3 the model is not installed.
    """
    check_files(WHO, [html_file], new=None if force else html_file)
    need("jinja2", "makes pages")
    from polyattn.models.explain import page

    try:
        made = page(text, model=model, layer=layer, head=head)
    except ModuleNotFoundError as error:
        raise stop(str(error), MISSING) from None
    except ValueError as error:
        raise stop(str(error), USAGE) from None
    write_file(WHO, html_file, made)
