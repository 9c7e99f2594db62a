"""Convolutions, linear and not."""
