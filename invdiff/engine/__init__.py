"""The loop around every sampler: requirements, chunks, precision, progress, cost, divergence."""
