"""Membership attacks and the statistics behind them: fitted, calibrated by reference models, on canaries."""
