"""Samplers that use the codec of a latent prior; every other one for nonlinear operators runs on codes too."""
