"""The contracts of forward models, and the algebra that they share."""
