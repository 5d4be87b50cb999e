"""python -m polyattn.implementations docs/capabilities.md: writes the table into its page."""

from __future__ import annotations

import sys
from pathlib import Path

from polyattn.implementations.table import markdown

BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"

if __name__ == "__main__":
    page = Path(sys.argv[1])
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + markdown(("numpy", "jax", "torch")) + END + rest.split(END)[1])
