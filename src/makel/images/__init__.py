"""Images: decode, check, turn upright, resize, scale. The only preprocessing there is, for fitting as for inspecting.

formats                      which files are images, by content and by name
containers, tags             what a file says of itself, and whether it is whole
jpeg, png, tiff, pnm, jp2    the formats that take more than that
reading                      files → pixels
rows                         files → some of their rows, for images too large for memory
likeness                     which pictures show the same once more
masks                        files → what is marked
folders                      folders → image files, and what is passed over
preparation                  pixels → what a model takes
"""

from makel.images.containers import Header
from makel.images.folders import PassedOver, find, in_words, kind_of, misnamed, passed_over
from makel.images.formats import SUFFIXES, ending, is_image_name
from makel.images.masks import Mask, read_mask
from makel.images.preparation import Kind, Preparation, coloured, prepare
from makel.images.reading import (
    MAX_PIXELS,
    decode,
    decode_all,
    decode_header,
    file_size,
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
    "Kind",
    "Mask",
    "PassedOver",
    "Preparation",
    "Rows",
    "coloured",
    "decode",
    "decode_all",
    "decode_header",
    "ending",
    "file_size",
    "find",
    "in_words",
    "is_image_name",
    "kind_of",
    "misnamed",
    "open_rows",
    "passed_over",
    "prepare",
    "read",
    "read_header",
    "read_mask",
    "read_reduced",
    "reduction",
    "shown",
    "work_ahead",
]
