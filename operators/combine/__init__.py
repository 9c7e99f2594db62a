"""Operators made of other operators."""
