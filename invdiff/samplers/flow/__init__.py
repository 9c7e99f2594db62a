"""Samplers from the literature on flows; with the denoiser of a flow or of any other prior."""
