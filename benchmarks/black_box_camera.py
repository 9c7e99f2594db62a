"""A camera as a black box, in NumPy and SciPy: a lens, a response curve and a coarse sensor that rounds to 8 bits.

    invdiff reconstruct operator=callable operator.file=benchmarks/black_box_camera.py:camera operator.numpy=true \
        operator.differentiable=false prior=digits data=generated
"""

import numpy as np
from scipy.ndimage import gaussian_filter


def camera(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [0, 1] to a quarter of the pixels, (C, H / 2, W / 2), in [0, 1]."""
    light = np.clip(image, 0, 1) ** 2.2
    focused = gaussian_filter(light, sigma=(0, 1.0, 1.0), mode="reflect")
    channels, height, width = focused.shape
    cells = focused.reshape(channels, height // 2, 2, width // 2, 2).mean((2, 4))
    return np.round(255 * np.clip(cells, 0, 1) ** (1 / 2.2)) / 255
