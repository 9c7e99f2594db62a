"""The contracts of forward models and their shared algebra."""
