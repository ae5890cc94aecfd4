"""The models: what is served, activation and the way back."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from makel.errors import MakelError, ModelFolderError, UsageError
from makel.model.folder import open_folder
from makel.model.manifest import MANIFEST_NAME, REPORT_NAME
from makel.signing.signature import signature_path
from makel.station import bodies, problems
from makel.station.access import Known, Principal
from makel.station.archive import unpack
from makel.station.declared import Declared, declared, run_in
from makel.station.registry import NAME, Version
from makel.station.station import Station

Name = Annotated[str, Path(pattern=f"^{NAME.pattern}$", description="The name a model is served under")]
VersionNumber = Annotated[
    int | None, Query(ge=1, le=2**31, description="Of the model; the one that judges where none is named")
]

_BINARY = {"type": "string", "format": "binary"}
_ZIP = {
    "required": True,
    "content": {
        "application/zip": {"schema": _BINARY},
        "multipart/form-data": {"schema": {"type": "object", "required": ["model"], "properties": {"model": _BINARY}}},
    },
}
_REPORT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; sandbox allow-scripts; "
    "frame-ancestors 'self'"
)
"""A report is one file with all of its styles and scripts inside. It runs in a sandbox, as nobody's page."""


def router(station: Station) -> APIRouter:
    """The endpoints for a station."""
    routes = APIRouter(tags=["models"], route_class=Declared)

    @routes.get("/models", responses={200: {"model": bodies.ModelsBody}, **problems.responses()}, response_model=None)
    @declared("operator")
    def models() -> Response:
        """What is served, with every version there is."""
        return JSONResponse({"models": [_model(station, name) for name in station.registry.names()]})

    @routes.post(
        "/models",
        status_code=201,
        responses={
            200: {"description": "It was here already", "model": bodies.ModelBody},
            201: {"model": bodies.ModelBody},
            **problems.responses(413),
        },
        response_model=None,
        openapi_extra={"requestBody": _ZIP},
    )
    @declared("engineer", body="upload")
    async def upload(
        request: Request,
        name: Annotated[str, Query(pattern=f"^{NAME.pattern}$", description="What to serve it under")],
        who: Known,
    ) -> Response:
        """Take in a zip of a model folder as a new version; it judges once it is activated, the first one at once."""
        with TemporaryDirectory(dir=station.scratch()) as folder:
            await _receive(request, archive := FilePath(folder) / "upload.zip")
            new = await run_in("changing", lambda: _add(station, name, archive, FilePath(folder) / "content", who))
        return JSONResponse(await run_in_threadpool(_model, station, name), 201 if new else 200)

    @routes.get(
        "/models/{name}", responses={200: {"model": bodies.ModelBody}, **problems.responses(404)}, response_model=None
    )
    @declared("operator")
    def model(name: Name) -> Response:
        """One model."""
        return JSONResponse(_model(station, name))

    @routes.get(
        "/models/{name}/report",
        responses={200: {"content": {"text/html": {}}}, **problems.responses(404)},
        response_class=HTMLResponse,
        response_model=None,
    )
    @declared("operator")
    def report(name: Name, version: VersionNumber = None) -> Response:
        """The report of a version; of the one that judges where none is named."""
        path = station.registry.version(name, version).path
        page = open_folder(path, verify=False).read(REPORT_NAME)
        headers = {"Content-Security-Policy": _REPORT_POLICY, "X-Frame-Options": "SAMEORIGIN"}
        return HTMLResponse(page, headers=headers)

    @routes.post(
        "/models/{name}/activate",
        responses={200: {"model": bodies.VersionBody}, **problems.responses(404, 409)},
        response_model=None,
    )
    @declared("engineer", body="json", lane="changing")
    def activate(name: Name, wanted: bodies.ActivateBody, who: Known) -> Response:
        """Let a version judge from the next image on; what is under way ends with the one before."""
        return JSONResponse(version_body(station.activate(name, wanted.version, by=who.name, role=who.role)))

    @routes.post(
        "/models/{name}/rollback",
        responses={200: {"model": bodies.VersionBody}, **problems.responses(404)},
        response_model=None,
    )
    @declared("engineer", lane="changing")
    def rollback(name: Name, who: Known) -> Response:
        """Let the version before judge again."""
        return JSONResponse(version_body(station.rollback(name, by=who.name, role=who.role)))

    return routes


def version_body(version: Version) -> dict[str, Any]:
    """The documented keys of a version."""
    return {key: value for key, value in asdict(version).items() if key not in ("name", "path")}


async def _receive(request: Request, file: FilePath) -> None:
    """The body of a request to the disk as it arrives, or the one file of a form."""
    with file.open("wb") as opened:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            async with request.form(max_files=1) as form:
                upload = next((value for value in form.values() if isinstance(value, UploadFile)), None)
                if upload is None:
                    raise UsageError("the form holds no file: send a zip of a model folder")
                await run_in_threadpool(shutil.copyfileobj, upload.file, opened)
            return
        async for block in request.stream():
            await run_in_threadpool(opened.write, block)


def _add(station: Station, name: str, archive: FilePath, target: FilePath, who: Principal) -> bool:
    target.mkdir()
    with archive.open("rb") as opened:
        folder = unpack(opened, target)
    signed = [path.parent for path in folder.glob(f"*/{MANIFEST_NAME}") if signature_path(path.parent).exists()]
    if len(signed) == 1:  # the folder, with its signature beside it
        (folder,) = signed
    if not (folder / MANIFEST_NAME).is_file():
        raise UsageError(f"the zip holds no {MANIFEST_NAME}: pack a model folder as `makel fit` wrote it")
    try:
        return station.add(name, folder, by=who.name, role=who.role)[1]
    except ModelFolderError as error:  # paths of this machine are nobody's matter outside
        said = str(error).replace(f"{folder}/", "").replace(str(folder), "the zip")
        raise UsageError(f"the upload is not a sound model folder: {said}") from error


def _model(station: Station, name: str) -> dict[str, Any]:
    try:
        versions, problem = station.registry.versions(name), ""
    except ModelFolderError as error:  # the others are shown all the same
        versions, problem = [], str(error)
    active = next((version for version in versions if version.active), None)
    described: dict[str, Any] = {
        "name": name,
        "active": active.version if active else 0,
        "before": station.registry.earlier(name) if active else None,
        "model_id": active.model_id if active else "",
        "problem": active.problem if active else problem,
        "queue": station.settings.queue,
        "depth": 0,
        "method": "",
        "size_px": None,
        "image_threshold": None,
        "pixel_threshold": None,
        "promised_false_reject": None,
        "n_calibrate": None,
        "versions": [version_body(version) for version in versions],
    }
    try:
        line = station.line(name)
    except MakelError as error:
        return described | {"problem": str(error)}
    manifest = line.inspector.manifest
    return described | {
        "model_id": manifest.model_id,
        "depth": line.depth,
        "method": manifest.method.name,
        "size_px": [manifest.preprocessing.width, manifest.preprocessing.height],
        "image_threshold": manifest.calibration.image_threshold,
        "pixel_threshold": manifest.calibration.pixel_threshold,
        "promised_false_reject": manifest.calibration.promised_false_reject,
        "n_calibrate": manifest.calibration.n,
    }
