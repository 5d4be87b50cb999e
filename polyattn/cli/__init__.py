"""The command line: verify, info, tune, mask, dialects, diagnose, check-model, grade, explain-text."""

import sys

try:
    import rich  # noqa: F401
    import typer  # noqa: F401
except ImportError:  # the library itself does not need them
    print("polyattn: the command line needs typer and rich; pip install 'polyattn[cli]'", file=sys.stderr)
    raise SystemExit(3) from None  # MISSING; 1 would say that libraries disagree

from polyattn.cli import checking, diagnosing, explaining, grading, showing, tuning, verifying  # noqa: F401 - each adds its commands
from polyattn.cli.program import app, main

__all__ = ["app", "main"]
