"""Scores of reconstructions: metrics, distances to the exact posterior, calibration."""

from .of_images import SCORES, ImageScores, baseline_psnr, evaluate, missing_scores, score_images

__all__ = ["SCORES", "ImageScores", "baseline_psnr", "evaluate", "missing_scores", "score_images"]
