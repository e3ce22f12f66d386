"""Relevance as pictures: what `xdeploy explain` writes, and whether a compressed network's explanations survive.

RelevanceMap, SourceModel -explain-> explain/ (samples.png, layers.svg, weights*.svg, filters*.svg, scores.json, html)
SourceModel, CompressedModel -survive-> part of accuracy.json, survival.npz, survival.png
"""

from xdeploy.explain.charts import explain
from xdeploy.explain.survival import survive

__all__ = ["explain", "survive"]
