"""Images: decode, check, turn upright, resize, scale. The only preprocessing there is, for fitting as for inspecting.

containers, tags, tiff   what a file says of itself, and whether it is whole
reading                  files → pixels
rows                     files → some of their rows, for images too large for memory
preparation              pixels → what a model takes
"""

from makel.images.containers import Header
from makel.images.preparation import Preparation, prepare
from makel.images.reading import (
    MAX_PIXELS,
    SUFFIXES,
    decode,
    decode_all,
    ending,
    file_size,
    find,
    is_image_name,
    read,
    read_header,
    shown,
    work_ahead,
)
from makel.images.rows import MAX_STREAMED_PIXELS, DecodedRows, Rows, open_rows, read_reduced, reduction

__all__ = [
    "MAX_PIXELS",
    "MAX_STREAMED_PIXELS",
    "SUFFIXES",
    "DecodedRows",
    "Header",
    "Preparation",
    "Rows",
    "decode",
    "decode_all",
    "ending",
    "file_size",
    "find",
    "is_image_name",
    "open_rows",
    "prepare",
    "read",
    "read_header",
    "read_reduced",
    "reduction",
    "shown",
    "work_ahead",
]
