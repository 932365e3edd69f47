"""``python -m efface``: the same as ``efface``."""

from efface.cli import main

if __name__ == "__main__":  # the processes of a bench import this module again
    main()
