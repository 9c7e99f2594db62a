"""Intensities without their phase."""
