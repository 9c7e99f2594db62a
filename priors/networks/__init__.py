"""Pretrained networks as priors."""
