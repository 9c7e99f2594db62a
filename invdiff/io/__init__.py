"""Reading what users have and writing what they look at: images, volumes, folders of images, measurements."""

from invdiff.files.errors import BadInput
from invdiff.io.images import SUFFIXES, image_files, match_channels, square, to_tensor, write_image
from invdiff.io.measurements import MEASUREMENT_SUFFIXES, Measurement, load_measurement, read_measurement
from invdiff.io.slicing import Slicing
from invdiff.io.volumes import Slices, by_size, read_image, read_slices

__all__ = [
    "MEASUREMENT_SUFFIXES",
    "SUFFIXES",
    "BadInput",
    "Measurement",
    "Slices",
    "Slicing",
    "by_size",
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
