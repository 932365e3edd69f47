"""``python -m efface``: the same as ``efface``."""

from efface.cli import main

main()
