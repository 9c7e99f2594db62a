"""Priors whose denoiser, and often whose posterior, is known in closed form."""
