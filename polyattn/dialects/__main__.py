"""python -m polyattn.dialects docs/dialects.md [--peers]: makes the tables of the page anew."""

import sys
from pathlib import Path

from polyattn.dialects.markdown import update
from polyattn.dialects.peers import peer_table

if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(update(page.read_text(), peer_table() if "--peers" in sys.argv else None))
