"""Readers of foreign checkpoints, one file per home; `identify.py` has the table of their signatures."""
