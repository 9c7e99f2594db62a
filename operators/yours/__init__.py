"""Operators from forward models that were not written for invdiff."""
