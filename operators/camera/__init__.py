"""Steps of a camera: clipping, rounding, compression."""
