"""Run the command line with ``python -m efface``."""

from efface.cli import main

if __name__ == "__main__":  # worker processes import this module again
    main()
