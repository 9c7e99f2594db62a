"""Likelihoods p(y | A x)."""
