"""Untrained networks: backbones and text towers, efface's own and those of other libraries."""
