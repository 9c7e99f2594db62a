"""Priors learned from measurements."""
