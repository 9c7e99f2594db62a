"""Magnetic resonance imaging: samples of k-space."""
