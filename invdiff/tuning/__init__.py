"""Search for settings of a sampler."""
