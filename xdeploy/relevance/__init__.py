"""Relevance: which weights and channels matter. One file per family of methods; `score` runs one of them."""

from xdeploy.relevance.method import METHODS, score

__all__ = ["METHODS", "score"]
