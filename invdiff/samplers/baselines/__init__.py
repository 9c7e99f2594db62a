"""Samplers without a network: what a prior of diffusion buys is measured against them."""
