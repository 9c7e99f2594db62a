"""What a camera does to a scene: clipping, rounding, compression."""
