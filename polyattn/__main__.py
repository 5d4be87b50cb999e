"""python -m polyattn"""

from polyattn.cli import main

main()
