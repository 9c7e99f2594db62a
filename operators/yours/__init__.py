"""Ways in for forward models that were not written for invdiff."""
