"""Images: decode, check, turn upright, resize, scale. The only preprocessing there is, for fitting as for inspecting.

containers, tags, tiff   what a file says of itself, and whether it is whole
reading                  files → pixels
preparation              pixels → what a model takes
"""

from makel.images.containers import Header
from makel.images.preparation import Preparation, prepare
from makel.images.reading import (
    MAX_PIXELS,
    SUFFIXES,
    decode,
    decode_all,
    file_size,
    find,
    is_image_name,
    read,
    read_header,
    shown,
)

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Header",
    "Preparation",
    "decode",
    "decode_all",
    "file_size",
    "find",
    "is_image_name",
    "prepare",
    "read",
    "read_header",
    "shown",
]
