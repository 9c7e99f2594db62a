"""Samplers that put what was measured into the image at every noise level, without gradients of the network."""
