"""Particle filters: weights, resampling, evidence."""
