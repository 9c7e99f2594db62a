"""Hydra configurations: one group per role."""
