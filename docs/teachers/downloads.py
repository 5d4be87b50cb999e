"""All that docs/teachers/index.md offers to take away, made beside that page when the site is built.

python docs/teachers/downloads.py docs/_build/html/teachers
"""

from __future__ import annotations

import sys
from pathlib import Path

import slides
import worksheet

if __name__ == "__main__":
    here = Path(sys.argv[1])
    worksheet.write(here)
    slides.write(here / "slides")
