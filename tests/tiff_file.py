"""TIFF files as nothing writes them: any tags, any strips or tiles."""

import struct

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, STRIP_ROWS = 256, 257, 258, 259, 262, 277, 278
_STARTS, _LENGTHS, PREDICTOR, TILE_WIDTH, TILE_HEIGHT = (273, 324), (279, 325), 317, 322, 323


def tiff_file(width, height, parts, compression, *, bits=8, tags=None, starts=None):
    """A grey little-endian TIFF of one page.

    Args:
        width: In pixels.
        height: In pixels.
        parts: The bytes of each strip or tile; tiles where `tags` has their sides.
        compression: The tag's number.
        bits: A value.
        tags: Tag → its one value, beside or instead of the usual ones.
        starts: Offset of each part, where they are not to lie one after the other from byte 8 on.
    """
    tags = {STRIP_ROWS: height, **(tags or {})}
    tiled = TILE_WIDTH in tags
    data = b"".join(parts)
    offset, begins = 8, []
    for part in parts:
        begins.append(offset)
        offset += len(part)
    begins = starts or begins
    entries = {
        WIDTH: [width],
        HEIGHT: [height],
        BITS: [bits],
        COMPRESSION: [compression],
        PHOTOMETRIC: [1],
        SAMPLES: [1],
    }
    entries |= {tag: [value] for tag, value in tags.items()}
    entries |= {_STARTS[tiled]: begins, _LENGTHS[tiled]: [len(parts[i % len(parts)]) for i in range(len(begins))]}
    outside, table, behind = b"", b"", 8 + len(data)
    for tag, values in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            outside, packed = outside + packed, struct.pack("<I", behind + len(outside))
        table += struct.pack("<HHI", tag, 4, len(values)) + packed
    directory = struct.pack("<H", len(entries)) + table + bytes(4)
    return b"II*\0" + struct.pack("<I", behind + len(outside)) + data + outside + directory
