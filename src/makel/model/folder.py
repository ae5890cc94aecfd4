"""A model folder on disk: written whole or not at all, read only if every byte is what was written.

Writing fills a hidden sibling (`.NAME.partial-*`), flushes it to the disk and renames it. A folder cannot be renamed
over another one, so where NAME exists it is first renamed to `.NAME.old-*`, and deleted at the very end. A crash leaves

- before the first rename: the old model; the partial sibling is deleted by a later `staging` once it is a day old,
- between the two renames, an instant: both models whole under hidden names and none as NAME; `open_folder` says so,
  and the next `staging` or `recover` gives the old one its name back,
- after the second rename: the new model; the next `staging` deletes what is left of the old one.

Nobody else writes NAME meanwhile: `.NAME.lock` is held from the start.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path, PurePosixPath
from stat import S_ISREG

from makel.errors import MakelError, ModelFolderError
from makel.model.lock import hold
from makel.model.manifest import MANIFEST_NAME, MOST_MANIFEST_BYTES, RUNS, Draft, Manifest, read_json

_ABANDONED_S = 24 * 3600
"""A partial sibling this old belongs to no running fit."""

_MOST_MODEL_BYTES, _MOST_BYTES = 2 * 2**30, 2**28
"""Of what runs, since an ONNX file cannot be larger, and of any other file. A sparse file of terabytes costs its maker
nothing."""

_MOST_FILES, _MOST_DEPTH = 1000, 8
"""Files of a model folder, and folders within each other; makel writes about ten, and one."""
_TOKEN_BYTES = 10
"""Random bytes in a sibling's name: more digits than a date that somebody put behind a copy."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What a write says of a disk that takes no more, without the file's name."""


@dataclass(frozen=True)
class ModelFolder:
    """A model folder that `open_folder` has checked.

    Attributes:
        path: The folder.
        manifest: Its `model.json`.
    """

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """The bytes of one file, checked as they are read: nothing can change between the check and the use.

        Args:
            name: A key of `manifest.files`.

        Raises:
            ModelFolderError: The file is not part of the model, cannot be read, or was changed.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            raise ModelFolderError(f"{self.path / name} is not a file of model {self.manifest.model_id}")
        data = read_bytes(self.path / name, _most(name))
        if sha256(data).hexdigest() != expected:
            raise _changed(self.path / name)
        return data


def open_folder(path: str | os.PathLike[str], *, verify: bool = True) -> ModelFolder:
    """Read a model folder's manifest and check the folder against it.

    Args:
        path: The model folder.
        verify: Hash every file. Without it only the names are checked here; `ModelFolder.read` hashes in any case.

    Returns:
        The checked folder.

    Raises:
        ModelFolderError: It is no model folder, or a file is missing, changed, extra, a link or unreadable; the message
            names it.
    """
    folder = Path(path)
    with faults_of(folder):
        if not folder.is_dir():
            raise ModelFolderError(_why_absent(folder))
        found = set(_files(folder))  # first, as it refuses links: what is read then is in the folder
        if MANIFEST_NAME not in found:
            raise ModelFolderError(f"{folder} is not a model folder: it holds no {MANIFEST_NAME}")
        manifest_path = folder / MANIFEST_NAME
        manifest = Manifest.from_bytes(read_bytes(manifest_path, MOST_MANIFEST_BYTES), manifest_path)
        found.remove(MANIFEST_NAME)
        if missing := sorted(set(manifest.files) - found):
            raise ModelFolderError(
                f"{folder / missing[0]} is missing: restore the folder from a good copy, or fit again"
            )
        if extra := sorted(found - set(manifest.files)):
            raise ModelFolderError(f"{folder / extra[0]} is no part of this model: move it out of the model folder")
        if verify:
            for name, expected in manifest.files.items():
                if _hash(folder / name, _most(name)) != expected:
                    raise _changed(folder / name)
        return ModelFolder(folder, manifest)


@contextmanager
def faults_of(folder: Path) -> Iterator[None]:
    """Whatever goes wrong within is a fault of this model folder, however little anybody thought of it.

    Raises:
        ModelFolderError: For what is no error of makel's yet, such as too deep a nesting or too little memory.
    """
    try:
        yield
    except MakelError:
        raise
    except Exception as error:
        what = " ".join(f"{type(error).__name__} {error}".split())[:300]
        raise ModelFolderError(
            f"{folder} cannot be used ({what}): restore the folder from a good copy, or fit again"
        ) from error


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """An empty hidden folder beside `target`, on the same disk, to fill and then hand to `write`.

    What is still there when the block ends is deleted, so an error or Ctrl-C leaves nothing behind.

    Args:
        target: Where the model folder is to be. Its parents are made.

    Raises:
        ModelFolderError: `target` cannot be written, or exists and is not a model folder; said here, before hours of
            fitting.
    """
    target = target.resolve()
    if not target.name:
        raise ModelFolderError(f"{target} is the root of a disk: give a folder for the model in it")
    stage = _sibling(target, "partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(target, error) from error
    with _alone(target):
        try:
            recover(target)
            check_target(target)
            stage.mkdir()
        except OSError as error:
            raise _unwritable(target, error) from error
        try:
            yield stage
        except OSError as error:
            if error.errno in _FULL:
                raise _unwritable(target, error) from error
            raise
        finally:
            if stage.exists():
                shutil.rmtree(stage)


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep other processes, and other threads of this one, from writing the same model folder.

    The system frees the file when a process is killed. It is deleted while it is held, so whoever opened it meanwhile
    holds a file that is no longer there, and looks again.
    """
    path = target.with_name(f".{target.name}.lock")
    while True:
        try:
            file = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except OSError as error:
            raise _unwritable(target, error) from error
        if not hold(file):
            os.close(file)
            raise ModelFolderError(
                f"{target} is being written by another fit or recalibration: wait for it, or give another folder"
            )
        if _is_same(file, path):
            break
        os.close(file)
    try:
        yield
    finally:
        if os.name == "nt":  # an open file cannot be deleted there
            os.close(file)
            with suppress(OSError):
                path.unlink()
        else:
            path.unlink(missing_ok=True)
            os.close(file)


def _is_same(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _unwritable(target: Path, error: OSError) -> ModelFolderError:
    return ModelFolderError(f"{target} cannot be written: {error.strerror}")


def write(target: Path, stage: Path, draft: Draft) -> Manifest:
    """Seal a filled staging folder and make it the model folder.

    Args:
        target: Where the model folder is to be; an existing model folder is replaced.
        stage: From `staging(target)`, filled with every file but `model.json`. Gone afterwards.
        draft: What is known about the model.

    Returns:
        The manifest as written.

    Raises:
        ModelFolderError: `target` exists and is not a model folder.
    """
    target = target.resolve()
    check_target(target)
    manifest = Manifest.seal(draft, {name: _hash(stage / name, _most(name)) for name in _files(stage)})
    (stage / MANIFEST_NAME).write_bytes(manifest.to_bytes())
    _flush(stage)
    old = _sibling(target, "old")
    try:
        if target.exists():
            target.rename(old)
        stage.rename(target)
    except BaseException as error:  # Ctrl-C between the two renames as well
        if old.exists() and not target.exists():
            old.rename(target)
        if isinstance(error, OSError):
            message = f"{target} cannot be replaced ({error.strerror}): close what has its files open"
            raise ModelFolderError(message) from error
        raise
    _flush_directory(target.parent)
    # The new model stands. A file of the old one that another process holds open (Windows) must not undo that: what is
    # left goes with the next `staging`.
    _delete_model(old)
    return manifest


def copy(source: ModelFolder, target: Path) -> ModelFolder:
    """A second copy of a model folder, whole or not at all; every byte is checked as it is copied.

    Args:
        source: From `open_folder`.
        target: Where the copy is to be. Nothing may be there; its parents are made.

    Raises:
        ModelFolderError: A file of the source was changed, or `target` exists or cannot be written.
    """
    with staging(target) as stage:
        if target.exists():
            raise ModelFolderError(f"{target} exists already: a copy replaces nothing")
        for name in (*source.manifest.files, MANIFEST_NAME):
            data = source.manifest.to_bytes() if name == MANIFEST_NAME else source.read(name)
            try:
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                (stage / name).write_bytes(data)
            except OSError as error:
                raise ModelFolderError(f"{target} cannot be written: {error.strerror}") from error
        _flush(stage)
        stage.rename(target)
        _flush_directory(target.parent)
    return ModelFolder(target, source.manifest)


def check_target(target: Path) -> None:
    """Refuse a target that replacing would take something from that makel did not write.

    Raises:
        ModelFolderError: `target` is a file, or a folder that is not empty and not a model folder, or holds
            files the model does not list.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise ModelFolderError(f"{target} is a file: give a folder for the model")
    if not any(target.iterdir()):
        return
    written = _written_files(target)
    if others := sorted((set(_files(target)) - written) | _other_folders(target, written)):
        raise ModelFolderError(
            f"{target} holds {others[0]}, which is no part of a model: nothing is deleted that makel did not write. "
            "Give another folder, or move it away"
        )


def recover(target: Path) -> None:
    """Finish or undo a replacement that a crash cut short, and delete what dead fits left beside `target`.

    Folders that only have a like name are somebody's, and stay.
    """
    for old in _siblings(target, "old"):
        written = _written_files(old)
        # Deleting starts only when the new model stands, so an old one with a file missing is no longer wanted.
        if not target.exists() and written and set(_files(old)) == written:
            old.rename(target)
        else:
            _delete_model(old)  # may still be held open; the next call tries again
    for stage in _siblings(target, "partial"):
        if time.time() - stage.stat().st_mtime > _ABANDONED_S:
            shutil.rmtree(stage, ignore_errors=True)


def _delete_model(folder: Path) -> None:
    """Delete the files that makel wrote into a folder, its manifest last, and then the folder where nothing is left.

    Without the manifest nothing tells what makel wrote. What cannot be deleted stays.
    """
    with suppress(OSError, ModelFolderError):
        written = set(_files(folder)) & _written_files(folder)  # what a manifest names may lie elsewhere
        for name in sorted(written, key=lambda name: name == MANIFEST_NAME):
            (folder / name).unlink(missing_ok=True)
        for name in sorted(_folders_of(written), reverse=True):
            (folder / name).rmdir()
        folder.rmdir()


def _folders_of(files: set[str]) -> set[str]:
    """The folders, relative with forward slashes, that files lie in."""
    return {parent.as_posix() for name in files for parent in PurePosixPath(name).parents} - {"."}


def _other_folders(folder: Path, files: set[str]) -> set[str]:
    """The folders inside one, relative with a slash behind, in which none of these files lies."""
    found = (Path(root, name).relative_to(folder).as_posix() for root, names, _ in os.walk(folder) for name in names)
    return {f"{name}/" for name in set(found) - _folders_of(files)}


def _written_files(folder: Path) -> set[str]:
    """The files that makel wrote into a folder, by its manifest; none where the manifest is not makel's.

    The manifest may be damaged or of another schema: the point is only to tell a model folder from somebody's data.
    """
    try:
        data = read_json(read_bytes(folder / MANIFEST_NAME, MOST_MANIFEST_BYTES), folder / MANIFEST_NAME)
    except ModelFolderError:
        return set()
    if not isinstance(data, dict) or "makel_version" not in data or not isinstance(data.get("files"), dict):
        return set()
    return {MANIFEST_NAME, *data["files"]}


def _files(folder: Path) -> Iterator[str]:
    """Relative paths, with forward slashes, of every file below; links, FIFOs and devices are refused unopened."""
    folders, count = [""], 0
    while folders:
        prefix = folders.pop()
        try:
            entries = os.scandir(folder / prefix)
        except OSError as error:
            raise ModelFolderError(f"{folder / prefix} cannot be read: {error.strerror}") from error
        with entries:
            for entry in entries:
                count += 1
                if count > _MOST_FILES or prefix.count("/") > _MOST_DEPTH:
                    raise ModelFolderError(
                        f"{folder} holds more than {_MOST_FILES} files, or folders deeper than {_MOST_DEPTH}: it is no "
                        "model folder"
                    )
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield f"{prefix}{entry.name}"
                else:
                    raise ModelFolderError(
                        f"{entry.path} is a link or a special file: a model folder holds plain files only"
                    )


@contextmanager
def _opened(path: Path, most: int) -> Iterator[BufferedReader]:
    """A plain file of at most so many bytes, and not what a link that took its place leads to."""
    # Binary on Windows; elsewhere not waiting for the other end of a FIFO.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with os.fdopen(os.open(path, flags), "rb") as file:
            status = os.fstat(file.fileno())
            if not S_ISREG(status.st_mode):
                raise ModelFolderError(f"{path} is a special file: a model folder holds plain files only")
            if status.st_size > most:
                raise ModelFolderError(
                    f"{path} has {status.st_size} bytes, and no such file of a model has more than {most}: restore the "
                    "folder from a good copy, or fit again"
                )
            yield file
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read: {error.strerror}") from error


def read_bytes(path: Path, most: int) -> bytes:
    """The bytes of a file of a model folder, or of the station's beside one.

    Args:
        path: The file.
        most: Its bytes at most.

    Raises:
        ModelFolderError: It cannot be read, is a link or a special file, or larger.
    """
    with _opened(path, most) as file:
        return file.read(most + 1)


def _hash(path: Path, most: int) -> str:
    with _opened(path, most) as file:
        return file_digest(file, "sha256").hexdigest()


def _most(name: str) -> int:
    return _MOST_MODEL_BYTES if name in RUNS.values() else _MOST_BYTES


def _changed(path: Path) -> ModelFolderError:
    return ModelFolderError(
        f"{path} was changed after fitting: its SHA-256 is not the one in {MANIFEST_NAME}. "
        "Restore the folder from a good copy, or fit again"
    )


def _why_absent(folder: Path) -> str:
    if folder.exists():
        return f"{folder} is a file: give the model folder that `makel fit` wrote"
    if old := _siblings(folder.resolve(), "old"):
        return f"{folder} was being replaced when the machine stopped; rename {old[0]} to {folder.name}, or fit again"
    return f"{folder} does not exist: give the model folder that `makel fit` wrote"


def _sibling(target: Path, use: str) -> Path:
    # Not tempfile.mkdtemp: its mode 0700 would lock out the account that inspects.
    return target.with_name(f".{target.name}.{use}-{secrets.token_hex(_TOKEN_BYTES)}")


def _siblings(target: Path, use: str) -> list[Path]:
    made_here = re.compile(re.escape(f".{target.name}.{use}-") + f"[0-9a-f]{{{2 * _TOKEN_BYTES}}}")
    return sorted(path for path in target.parent.iterdir() if made_here.fullmatch(path.name) and path.is_dir())


def _flush(folder: Path) -> None:
    """Everything below `folder` to the disk, so that the rename can never be there before what it names."""
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb+") as file:  # Windows flushes only what is open for writing
                os.fsync(file.fileno())
        _flush_directory(Path(root))


def _flush_directory(folder: Path) -> None:
    if os.name == "nt":  # a directory cannot be opened there; NTFS journals the rename itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
