"""`makel inspect`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from makel.cli.progress import count
from makel.errors import CODES, REJECTED_EXIT_CODE, ImageError, MakelError

if TYPE_CHECKING:
    from makel.model.inspector import Inspector
    from makel.types import Verdict


def inspect(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Image files, and folders of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for overlays and masks.")] = None,
    fail_on_reject: Annotated[
        bool, typer.Option("--fail-on-reject", help="Exit with 1 if any image is rejected.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads to use at most.")] = None,
    provider: Annotated[str, typer.Option(help="cpu, cuda, tensorrt or openvino.")] = "cpu",
) -> None:
    """Judge images: pass or reject, how sure, and where. Exit code 3 if any could not be inspected."""
    from makel.model.inspector import Inspector

    inspector = Inspector.load(model, threads=threads, provider=provider)
    files, failed, rejected = _expand(paths), 0, 0
    # Lines on a terminal show the progress themselves.
    for path, result in count(_results(inspector, files, out), "inspecting", len(files), quiet=sys.stdout.isatty()):
        failed += isinstance(result, MakelError)
        rejected += not isinstance(result, MakelError) and result.verdict == "reject"
        _print(path, result, as_json=as_json)
    if failed:
        print(f"makel: {failed} of {len(files)} images could not be inspected", file=sys.stderr)
        raise typer.Exit(CODES[ImageError][0])
    if rejected and fail_on_reject:
        raise typer.Exit(REJECTED_EXIT_CODE)


def _expand(paths: list[Path]) -> list[Path]:
    """Folders replaced by the image files in them; one without any stays, and fails as an image that cannot be read."""
    from makel.images import find

    return [file for path in paths for file in ((find(path) if path.is_dir() else []) or [path])]


def _results(inspector: Inspector, files: list[Path], out: Path | None) -> Iterator[tuple[Path, Verdict | MakelError]]:
    if out is None:
        yield from inspector.inspect_all(files)
        return
    from makel.images import read, read_reduced
    from makel.model import overlay

    names = overlay.names(files)
    for name, (path, result) in zip(names, inspector.inspect_all(files), strict=True):
        if not isinstance(result, MakelError):
            tiled = inspector.manifest.tiling is not None
            overlay.write(
                out,
                name,
                read_reduced(path, overlay.LONGEST_PX) if tiled else read(path),
                result,
                inspector.calibration.pixel_threshold,
                white_level=inspector.manifest.preprocessing.white_level,
                rules=inspector.rules,
            )
        yield path, result


def _print(path: Path, result: Verdict | MakelError, *, as_json: bool) -> None:
    if as_json:
        said = {"error": str(result)} if isinstance(result, MakelError) else result.to_json()
        print(json.dumps({"path": str(path), **said}), flush=True)
    elif isinstance(result, MakelError):
        print(f"makel: {result}", file=sys.stderr, flush=True)
    else:
        print(_line(path, result), flush=True)


def _line(path: Path, verdict: Verdict) -> str:
    from makel.images import shown

    line = f"{verdict.verdict:6}  {shown(path)}  score {verdict.score:.4g}, threshold {verdict.threshold:.4g}"
    line += f", p = {verdict.p_value:.3g}"
    if not verdict.regions:
        return line
    x0, y0, x1, y1 = verdict.regions[0].box_px
    more = f" and {len(verdict.regions) - 1} more" if len(verdict.regions) > 1 else ""
    return f"{line}; {x1 - x0}x{y1 - y0} px at {x0},{y0}{more}"
