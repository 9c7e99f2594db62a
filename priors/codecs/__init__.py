"""Priors in the space of codes."""
