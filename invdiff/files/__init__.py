"""Files of arrays and pictures, read by one table: numbers only, of the size that the file declares and memory has."""

from invdiff.files.arrays import (
    ARRAYS,
    HDF5,
    READERS,
    is_picture,
    is_stack,
    read_array,
    read_arrays,
    read_grey,
    split_name,
)
from invdiff.files.choice import Choice, only
from invdiff.files.errors import BadInput, must_be_a_file, optional, reading
from invdiff.files.limits import check_size
from invdiff.files.masks import as_measured, mask_values
from invdiff.files.pictures import PICTURES, opened_picture, read_levels, read_picture

__all__ = [
    "ARRAYS",
    "HDF5",
    "PICTURES",
    "READERS",
    "BadInput",
    "Choice",
    "as_measured",
    "check_size",
    "is_picture",
    "is_stack",
    "mask_values",
    "must_be_a_file",
    "only",
    "opened_picture",
    "optional",
    "read_array",
    "read_arrays",
    "read_grey",
    "read_levels",
    "read_picture",
    "reading",
    "split_name",
]
