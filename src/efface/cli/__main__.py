"""``python -m efface.cli``."""

from efface.cli import main

main()
