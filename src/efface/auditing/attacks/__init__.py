"""Membership attacks and their statistics: fitted attacks, attacks with reference models, and canaries."""
