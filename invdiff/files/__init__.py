"""Files of arrays and pictures, read by one table: numbers only, of the size that the file declares and memory has."""

from invdiff.files.arrays import (
    ARRAYS,
    HDF5,
    READERS,
    is_picture,
    read_array,
    read_arrays,
    split_name,
)
from invdiff.files.choice import Choice, only
from invdiff.files.errors import BadInput, must_be_a_file, optional, reading
from invdiff.files.limits import check_size
from invdiff.files.masks import as_measured
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
    "must_be_a_file",
    "only",
    "opened_picture",
    "optional",
    "read_array",
    "read_arrays",
    "read_levels",
    "read_picture",
    "reading",
    "split_name",
]
