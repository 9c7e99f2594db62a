"""Random and structured projections: compressed sensing."""
