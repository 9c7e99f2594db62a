"""Samplers side by side: a grid of runs, their store, and its summary."""
