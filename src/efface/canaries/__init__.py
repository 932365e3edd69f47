"""Canaries: examples whose inclusion was decided by coins before training, so that a leak can be bounded in ε (A3).

``plan`` draws the coins, ``bound`` is the statistics, ``guessing`` guesses from observations. No torch.
"""
