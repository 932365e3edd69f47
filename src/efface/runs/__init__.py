"""The verbs on run folders: each reads folders, writes one folder, and prints nothing."""
