"""Projections along lines: computed tomography."""
