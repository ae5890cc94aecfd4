"""Fits: good images in, a new version of a model out."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from makel.errors import UsageError
from makel.images import ending, is_image_name
from makel.station import bodies, problems
from makel.station.access import Known, Principal
from makel.station.archive import unpack
from makel.station.declared import Declared, declared, run_in
from makel.station.fitting import FitSettings, Job, obstacle
from makel.station.registry import NAME
from makel.station.station import Station

_MAX_FILES = 500
"""A form keeps each of its files open; more images come as a zip."""

JobId = Annotated[str, Path(pattern="^[0-9a-f]{12}$")]

_BINARY = {"type": "string", "format": "binary"}
_IMAGES = {
    "required": True,
    "content": {
        "application/zip": {"schema": _BINARY},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "array", "items": _BINARY, "maxItems": _MAX_FILES}},
            }
        },
    },
}


def router(station: Station) -> APIRouter:
    """The endpoints for a station."""
    routes = APIRouter(prefix="/jobs", tags=["models"], route_class=Declared)
    fitting = station.fitting

    @routes.get("", responses={200: {"model": bodies.JobsBody}, **problems.responses()}, response_model=None)
    @declared("operator")
    def jobs() -> Response:
        """The last fits, newest first."""
        return JSONResponse({"obstacle": obstacle(), "jobs": [asdict(job) for job in fitting.jobs()]})

    @routes.get("/{job_id}", responses={200: {"model": bodies.JobBody}, **problems.responses(404)}, response_model=None)
    @declared("operator")
    def job(job_id: JobId) -> Response:
        """One fit."""
        return JSONResponse(asdict(fitting.job(job_id)))

    @routes.delete(
        "/{job_id}", responses={200: {"model": bodies.JobBody}, **problems.responses(404)}, response_model=None
    )
    @declared("engineer", lane="changing")
    def cancel(job_id: JobId, who: Known) -> Response:
        """Stop a fit; one that has ended stays as it ended."""
        job = fitting.cancel(job_id)
        station.store.audit(who.name, who.role, "cancel fit", {"model": job.name, "job": job_id})
        return JSONResponse(asdict(job))

    @routes.post(
        "",
        status_code=202,
        responses={202: {"model": bodies.JobBody}, **problems.responses(413)},
        response_model=None,
        openapi_extra={"requestBody": _IMAGES},
    )
    @declared("engineer", body="upload")
    async def begin(
        request: Request,
        who: Known,
        name: Annotated[str, Query(pattern=f"^{NAME.pattern}$", description="What to serve the model under")],
        preset: Literal["fast", "paper"] = "fast",
        size: Annotated[
            int | None, Query(ge=32, le=2048, description="Side of a square of as many pixels as the model sees")
        ] = None,
        epochs: Annotated[int | None, Query(ge=1, le=100_000)] = None,
        false_reject: Annotated[
            float, Query(gt=0, lt=1, description="Share of good parts that may be rejected")
        ] = 0.01,
        calibrate: Literal["holdout", "cross"] = "holdout",
    ) -> Response:
        """Fit on good images: a zip of them, or a form with files. The model becomes a new version of this name.

        It judges once it is activated, the first of its name at once. One fit runs at a time.
        """
        settings = FitSettings(preset, size, epochs, false_reject, calibrate)
        folder = await run_in_threadpool(fitting.reserve)
        try:
            images = folder / "images" / name  # the report calls the data by its folder's name
            images.mkdir(parents=True)
            archive = await _receive(request, folder, images)
            job = await run_in("changing", lambda: _begin(station, folder, images, archive, name, settings, who))
        except BaseException:
            await run_in_threadpool(fitting.discard, folder)
            raise
        return JSONResponse(asdict(job), 202)

    return routes


def _begin(
    station: Station,
    folder: FilePath,
    images: FilePath,
    archive: FilePath | None,
    name: str,
    settings: FitSettings,
    who: Principal,
) -> Job:
    if archive is not None:
        with archive.open("rb") as opened:
            inner = unpack(opened, images)
        archive.unlink()
        if inner != images:  # the one folder in a zip is mostly called good: what is learnt has a name of its own
            inner.rename(folder / "unpacked")
            shutil.rmtree(images)
            (folder / "unpacked").rename(images)
    n_images = _count_images(images)
    detail: dict[str, Any] = {"model": name, "images": n_images, **asdict(settings)}
    station.store.audit(who.name, who.role, "fit", detail)
    return station.fitting.start(
        folder, images, name=name, n_images=n_images, settings=settings, by=who.name, role=who.role
    )


def _count_images(images: FilePath) -> int:
    """How many files of an upload are images, by what is in them.

    Raises:
        UsageError: None is.
    """
    files = [path for path in images.rglob("*") if path.is_file()]
    n_images = sum(is_image_name(path) and _is_image(path) for path in files)
    if not n_images:
        raise _without_images(files)
    return n_images


def _without_images(files: Iterable[FilePath]) -> UsageError:
    """What came instead, by ending."""
    kinds = Counter(path.suffix.lower()[:20] or "without an ending" for path in files)
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "nothing"
    return UsageError(
        f"the upload holds no image, whatever its names say, but {held}: send good images as PNG, JPEG, TIFF, BMP or "
        "WebP"
    )


def _is_image(path: FilePath) -> bool:
    with path.open("rb") as file:
        return bool(ending(file.read(512)))


async def _receive(request: Request, folder: FilePath, images: FilePath) -> FilePath | None:
    """What came: the path of a zip file, or None where images came one by one and are in their folder now."""
    archive = folder / "upload.zip"
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        with archive.open("wb") as opened:
            async for block in request.stream():
                await run_in_threadpool(opened.write, block)
        return archive
    async with request.form(max_files=_MAX_FILES, max_fields=_MAX_FILES) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) == 1 and (files[0].filename or "").lower().endswith(".zip"):
            await run_in_threadpool(_write, files[0], archive)
            return archive
        for position, file in enumerate(files):
            # A name from outside is no path here: only its ending counts, and the order in which the files came.
            suffix = FilePath(file.filename or "").suffix.lower()
            if is_image_name(FilePath(f"image{suffix}")):
                await run_in_threadpool(_write, file, images / f"{position:06}{suffix}")
        if not any(images.iterdir()):
            raise _without_images(FilePath(file.filename or "") for file in files)
    return None


def _write(file: UploadFile, target: FilePath) -> None:
    with target.open("xb") as opened:
        shutil.copyfileobj(file.file, opened)
