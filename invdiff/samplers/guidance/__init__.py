"""Samplers that guide the reverse diffusion by a gradient through the denoiser."""
