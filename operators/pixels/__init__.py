"""Operators that select, mix or average pixels."""
