"""Variational reconstructions."""
