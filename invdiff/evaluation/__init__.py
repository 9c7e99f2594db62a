"""Scores of reconstructions, and benchmarks: runs over a grid, their store, and what they come to."""

from .measurement import measure
from .scores import SCORES, ImageScores, aligned, baseline_psnr, evaluate, missing_scores, score_images

__all__ = [
    "SCORES",
    "ImageScores",
    "aligned",
    "baseline_psnr",
    "evaluate",
    "measure",
    "missing_scores",
    "score_images",
]
