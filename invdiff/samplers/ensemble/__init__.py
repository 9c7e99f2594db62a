"""Ensembles of interacting particles, without derivatives."""
