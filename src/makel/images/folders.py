"""Folders of images: which files are looked at, by their names, and what is passed over, so that somebody says so."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from makel.errors import ImageError
from makel.images.formats import FORMATS, START, format_of, is_image_name, named_format
from makel.images.reading import shown

_LITTER = ("Thumbs.db", "desktop.ini", ".DS_Store")
"""What systems leave in folders, beside the `._name` of macOS."""

_MOST_LISTED = 100_000
_MOST_FOLDERS, _MOST_KINDS = 5, 8


@dataclass(frozen=True)
class PassedOver:
    """What lies in a folder and was not looked at.

    Attributes:
        lines: What it is, in words; none where nothing was passed over.
        images: Whether an image may be among it: not where all is text, or empty.
    """

    lines: tuple[str, ...] = ()
    images: bool = False


def find(path: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """The image files of a folder, by their names' endings, sorted; hidden files and folders are left out.

    Args:
        path: A folder; anything else is taken as one image file.
        recursive: Look into the folders in it, too, but not through links.

    Raises:
        ImageError: The folder cannot be listed.
    """
    root = Path(path)
    try:
        if not root.is_dir():
            return [root]
        if recursive:
            return [file for file in _walk(root) if is_image_name(file) and not file.is_dir()]
        entries = sorted(root.iterdir())
    except (OSError, ValueError) as error:
        raise ImageError(f"{shown(root)} cannot be listed: {getattr(error, 'strerror', None) or error}") from error
    return [entry for entry in entries if is_image_name(entry) and not entry.is_dir()]


def passed_over(
    root: Path, looked_at: Collection[Path], *, advice: str, skip: Collection[Path] = (), mixed: bool = True
) -> PassedOver:
    """What lies in a folder, and in those in it, and is not among what was looked at.

    Args:
        root: The folder.
        looked_at: Files in it, spelled as `root` is.
        advice: What to do about folders of images that were passed over.
        skip: Folders that do not count.
        mixed: Whether images beside some that were looked at count.
    """
    kinds: Counter[str] = Counter()
    folders: Counter[Path] = Counter()
    known, with_known, skipped, images = set(looked_at), {path.parent for path in looked_at}, set(skip), False
    refused: list[OSError] = []
    for number, path in enumerate(_walk(root, refused)):
        if number == _MOST_LISTED:
            kinds["others, uncounted"] += 1
            images = True
            break
        if path in known or skipped.intersection(path.parents):
            continue
        if path.name in _LITTER or path.name.startswith("._"):
            continue
        if path.is_dir():  # a link or hidden
            folders[path] = _images_below(path)
            images |= bool(folders[path]) and not path.name.startswith(".")
        elif not is_image_name(path):
            kind, is_image = kind_of(path)
            kinds[kind] += 1
            images |= is_image
        elif mixed or path.parent not in with_known:
            folders[path.parent] += 1
            images = True
    there = Counter({folder: count for folder, count in folders.items() if count})
    lines = (*filter(None, [in_words(kinds)]), *_in_folders(there, root, advice), *_unlisted(refused))
    return PassedOver(lines, images or bool(refused))


def misnamed(paths: Iterable[Path]) -> str:
    """One line about files whose names say another format than they hold, and which are read by it; "" for none."""
    found: Counter[tuple[str, str]] = Counter()
    first, total = None, 0
    for path in paths:
        held = format_of(_start(path))
        total += 1
        if held in FORMATS and held != named_format(path):
            first = first or path
            found[path.suffix.lower() or "without an ending", held] += 1
    if first is None:
        return ""
    each = ", ".join(f"{count} {suffix} hold {held}" for (suffix, held), count in found.most_common(_MOST_KINDS))
    return (
        f"{found.total()} of {_count(total, 'name')} disagree with what the files hold, which decides: {each} (first: "
        f"{shown(first)})"
    )


def _walk(root: Path, refused: list[OSError] | None = None) -> Iterator[Path]:
    """Every file below a folder, sorted; and links to folders and hidden ones themselves, which nothing looks into.

    Args:
        root: The folder.
        refused: Gets an error for each folder that cannot be listed.
    """
    for folder, inner, files in os.walk(root, onerror=None if refused is None else refused.append):
        left = sorted(name for name in inner if name.startswith(".") or os.path.islink(Path(folder, name)))  # noqa: PTH114, of a path too long it says no
        inner[:] = sorted(set(inner).difference(left))
        yield from (Path(folder, name) for name in sorted([*files, *left]))


def _images_below(folder: Path) -> int:
    """How many images lie in a folder and in those in it, as far as anybody counts."""
    listed = islice(_walk(folder), _MOST_LISTED)
    return sum(is_image_name(path) and not path.is_dir() for path in listed)


def kind_of(file: Path) -> tuple[str, bool]:
    """What to call a file that was passed over, and whether it may be an image."""
    start = _start(file)
    held = format_of(start)
    kind = ("hidden " if file.name.startswith(".") else "") + (shown(file.suffix.lower()) or "without an ending")
    return f"{kind} ({held})" if held in FORMATS and not named_format(file) else kind, bool(start) and held != "text"


def _start(file: Path) -> bytes:
    """The first bytes of a regular file; something that is no text where they cannot be read."""
    try:
        if not file.is_file():
            return b"\0"
        with file.open("rb") as stream:
            return stream.read(START)
    except OSError:
        return b"\0"


def in_words(kinds: Counter[str]) -> str:
    """One line about files that were not looked at, by their kinds; "" where there are none."""
    if not kinds:
        return ""
    listed = kinds.most_common(_MOST_KINDS)
    rest = kinds.total() - sum(count for _, count in listed)
    each = ", ".join([*(f"{count} {kind}" for kind, count in listed), *([f"{rest} others"] if rest else [])])
    return f"{_count(kinds.total(), 'file')} not looked at: {each}"


def _in_folders(folders: Counter[Path], root: Path, advice: str) -> Iterator[str]:
    for folder, count in folders.most_common(_MOST_FOLDERS):
        name = shown(root) if folder == root else f"{shown(folder.relative_to(root).as_posix())}/"
        yield f"{name} holds {_count(count, 'image')} not looked at: {advice}"
    if len(folders) > _MOST_FOLDERS:
        rest = folders.total() - sum(count for _, count in folders.most_common(_MOST_FOLDERS))
        yield f"{len(folders) - _MOST_FOLDERS} more folders hold {_count(rest, 'image')} not looked at"


def _unlisted(refused: Sequence[OSError]) -> Iterator[str]:
    if refused:
        more = f", nor can {len(refused) - 1} more" if len(refused) > 1 else ""
        yield f"{shown(refused[0].filename)} cannot be listed{more}, and may hold images: {refused[0].strerror}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
