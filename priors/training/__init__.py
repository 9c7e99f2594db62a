"""Training of networks and of mixtures."""
