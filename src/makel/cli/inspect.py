"""`makel inspect`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makel.cli.into_model import refuse_in_model
from makel.cli.progress import count, say
from makel.cli.terminal import put
from makel.errors import CODES, REJECTED_EXIT_CODE, ImageError, MakelError, UsageError

if TYPE_CHECKING:
    from makel.images import PassedOver
    from makel.model.inspector import Inspector
    from makel.types import Verdict

_NOT_ALL = CODES[ImageError][0]


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Image files, and folders of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for overlays and masks.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", help="Look into folders in folders, too.")] = False,
    fail_on_reject: Annotated[
        bool,
        typer.Option("--fail-on-reject", help="Exit with 1 if any image is rejected, 3 if any was passed over."),
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
) -> None:
    """Judge images: pass or reject, how sure, and where. Exit code 3 if any could not be inspected."""
    from makel.images import misnamed
    from makel.model.inspector import Inspector

    if out is not None:
        refuse_in_model(out, model)
        _refuse_among_images(out, paths)
    inspector = Inspector.load(model, threads=threads, provider=provider)
    files, left = _expand(paths, recursive=recursive)
    failed = rejected = unwritten = 0
    # Lines on a terminal show the progress themselves.
    for path, result, problem in count(
        _results(inspector, files, out), "inspecting", len(files), quiet=sys.stdout.isatty()
    ):
        failed += isinstance(result, MakelError)
        rejected += not isinstance(result, MakelError) and result.verdict == "reject"
        unwritten += bool(problem)
        _print(path, result, as_json=as_json)
        say([problem] if problem else [])
    say(filter(None, (misnamed(files), *(line for each in left for line in each.lines))))
    if failed:
        say([f"{failed} of {len(files)} images could not be inspected"])
    if unwritten:
        say([f"the pictures of {unwritten} of {len(files)} images could not be written"])
    passed_over = fail_on_reject and any(each.images for each in left)
    if passed_over:
        say([f"not everything was inspected: --fail-on-reject ends with {_NOT_ALL}"])
    if failed or passed_over:
        raise typer.Exit(_NOT_ALL)
    if rejected and fail_on_reject:
        raise typer.Exit(REJECTED_EXIT_CODE)
    if unwritten:
        raise typer.Exit(CODES[MakelError][0])


def _expand(paths: list[Path], *, recursive: bool) -> tuple[list[Path], list[PassedOver]]:
    """Folders replaced by the image files in them, and what else lies there.

    A folder without any image stays, and fails as an image that cannot be read.
    """
    from makel.images import find, passed_over

    found = [find(path, recursive=recursive) if path.is_dir() else [path] for path in paths]
    # A folder that was given beside the one it lies in has been looked at.
    known = {file for files in found for file in files}
    advice = "give that folder, too" if recursive else "give that folder, too, or --recursive"
    left = [passed_over(path, known, advice=advice) for path in paths if path.is_dir()]
    return [file for path, files in zip(paths, found, strict=True) for file in files or [path]], left


def _refuse_among_images(out: Path, paths: list[Path]) -> None:
    """Pictures that lie among the images would be inspected the next time."""
    target = out.resolve()
    for path in paths:
        folder = (path if path.is_dir() else path.parent).resolve()
        if target == folder or (path.is_dir() and folder in target.parents):
            raise UsageError(
                f"--out {out} lies in {path}, and its pictures would be taken for images: give a folder outside of it"
            )


def _results(
    inspector: Inspector, files: list[Path], out: Path | None
) -> Iterator[tuple[Path, Verdict | MakelError, str]]:
    """Each file with its verdict or error, and with what kept its pictures from being written, "" as a rule."""
    if out is None:
        yield from ((path, result, "") for path, result in inspector.inspect_all(files))
        return
    from makel.model import overlay

    names = overlay.names(files)
    for name, (path, result) in zip(names, inspector.inspect_all(files), strict=True):
        yield path, result, "" if isinstance(result, MakelError) else _write(inspector, path, result, out, name)


def _write(inspector: Inspector, path: Path, verdict: Verdict, out: Path, name: str) -> str:
    """Draw the verdict on an image. Whatever goes wrong with that is said, and changes nothing about the verdict."""
    from makel.images import read, read_reduced, shown
    from makel.model import overlay

    tiled = inspector.manifest.tiling is not None
    try:
        overlay.write(
            out,
            name,
            read_reduced(path, overlay.LONGEST_PX) if tiled else read(path),
            verdict,
            inspector.calibration.pixel_threshold,
            white_level=inspector.manifest.preprocessing.white_level,
            rules=inspector.rules,
        )
    except ImageError as error:  # the file has changed meanwhile
        return str(error)
    except OSError as error:
        where, why = shown(error.filename or out), error.strerror or error
        return f"the pictures of {shown(path)} cannot be written to {where}: {why}"
    return ""


def _print(path: Path, result: Verdict | MakelError, *, as_json: bool) -> None:
    if as_json:
        said = {"error": str(result)} if isinstance(result, MakelError) else result.to_json()
        put(json.dumps({"path": str(path), **said}))
    elif isinstance(result, MakelError):
        put(f"makel: {result}", error=True)
    else:
        put(_line(path, result))


def _line(path: Path, verdict: Verdict) -> str:
    from makel.images import shown

    line = f"{verdict.verdict:6}  {shown(path)}  score {verdict.score:.4g}, threshold {verdict.threshold:.4g}"
    line += f", p = {verdict.p_value:.3g}"
    if not verdict.regions:
        return line
    x0, y0, x1, y1 = verdict.regions[0].box_px
    more = f" and {len(verdict.regions) - 1} more" if len(verdict.regions) > 1 else ""
    return f"{line}; {x1 - x0}x{y1 - y0} px at {x0},{y0}{more}"
