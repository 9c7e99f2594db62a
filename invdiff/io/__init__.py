"""Reading what users have and writing what they look at: images, volumes, folders of images, measurements."""

from .errors import BadInput
from .images import SUFFIXES, image_files, match_channels, square, to_tensor, write_image
from .measurements import MEASUREMENT_SUFFIXES, Measurement, load_measurement, read_measurement
from .slicing import Slicing
from .volumes import Slices, read_image, read_slices

__all__ = [
    "MEASUREMENT_SUFFIXES",
    "SUFFIXES",
    "BadInput",
    "Measurement",
    "Slices",
    "Slicing",
    "image_files",
    "load_measurement",
    "match_channels",
    "read_image",
    "read_measurement",
    "read_slices",
    "square",
    "to_tensor",
    "write_image",
]
