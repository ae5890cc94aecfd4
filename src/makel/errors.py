"""The tree of errors, and the one table that maps each to an exit code and an HTTP status.

    MakelError
    ├── UsageError            arguments or configuration that cannot be used
    ├── MissingExtraError     an optional part of makel is not installed
    ├── ImageError            an image file that cannot be inspected
    ├── DatasetError          a folder of images that cannot be used
    ├── CalibrationError      a promise that the images at hand cannot carry
    ├── WeightsError          backbone weights missing or not what they should be
    ├── TrainingError         fitting went wrong (a loss turned NaN, a collapsed network)
    ├── ModelFolderError      a model folder that is damaged, unknown or changed
    ├── SignatureError        a model folder that nobody trusted signed as it is
    ├── StoreError            the station's record cannot be used now: locked, full, gone
    ├── DiskFullError         no room on the disk for what was sent
    ├── CandidateError        a version of a model that must not judge
    ├── BrokenRecordError     a record that is not as it was written
    ├── NotFoundError         something asked for by name or number that is not there
    ├── Overloaded            more work than there is room for: nothing was accepted, send it again later
    ├── TooLargeError         more bytes or pixels than are accepted
    ├── StalledError          a request that stopped arriving
    ├── UnauthorisedError     who asks is not known
    ├── ForbiddenError        who asks is known and may not do this
    └── ParityError           the exported model disagrees with the trained one

Every message is one line: what came, what was expected, what to do, and the path.
"""

from __future__ import annotations


class MakelError(Exception):
    """Root of everything makel raises on purpose."""

    def __str__(self) -> str:
        """The message as text that can be sent anywhere: names of files in it may hold bytes that are no text."""
        return super().__str__().encode("utf-8", "backslashreplace").decode("utf-8")


class UsageError(MakelError):
    """Arguments or configuration that cannot be used."""


class MissingExtraError(UsageError):
    """An optional part of makel is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the '{extra}' extra, which is not installed: pip install 'makel[{extra}]'")
        self.extra = extra


class ImageError(MakelError):
    """An image file that cannot be inspected."""


class DatasetError(MakelError):
    """A folder of images that cannot be used."""


class CalibrationError(MakelError):
    """A promise that the images at hand cannot carry."""


class WeightsError(MakelError):
    """Backbone weights missing or not what they should be."""


class TrainingError(MakelError):
    """Fitting went wrong."""


class ModelFolderError(MakelError):
    """A model folder that is damaged, unknown or changed."""


class SignatureError(ModelFolderError):
    """A model folder that nobody trusted signed as it is."""


class StoreError(MakelError):
    """The station's record cannot be used now: locked, full, gone."""


class DiskFullError(MakelError):
    """No room on the disk for what was sent."""


class CandidateError(MakelError):
    """A version of a model that must not judge."""


class BrokenRecordError(MakelError):
    """A record that is not as it was written."""


class NotFoundError(MakelError):
    """Something asked for by name or number that is not there."""


class Overloaded(MakelError):  # noqa: N818  a state that passes, not a mistake
    """More work than there is room for: nothing was accepted, send it again later."""


class TooLargeError(MakelError):
    """More bytes or pixels than are accepted."""


class StalledError(MakelError):
    """A request that stopped arriving."""


class UnauthorisedError(MakelError):
    """Who asks is not known."""


class ForbiddenError(MakelError):
    """Who asks is known and may not do this."""


class ParityError(MakelError):
    """The exported model disagrees with the trained one."""


REJECTED_EXIT_CODE = 1
"""`makel inspect --fail-on-reject`: every image was inspected, at least one was rejected."""

CODES: dict[type[MakelError], tuple[int, int]] = {
    # error: (exit code, HTTP status)
    UsageError: (2, 400),
    ImageError: (3, 422),
    DatasetError: (4, 422),
    CalibrationError: (5, 409),
    WeightsError: (6, 503),
    TrainingError: (7, 500),
    ModelFolderError: (8, 503),
    ParityError: (9, 500),
    StoreError: (10, 503),
    NotFoundError: (11, 404),
    Overloaded: (12, 503),
    TooLargeError: (13, 413),
    UnauthorisedError: (14, 401),
    ForbiddenError: (15, 403),
    BrokenRecordError: (16, 500),
    CandidateError: (17, 409),
    StalledError: (18, 408),
    DiskFullError: (19, 507),
    SignatureError: (20, 503),
    MakelError: (70, 500),
}


def exit_code(error: MakelError) -> int:
    """The process exit code for an error: its own row of `CODES`, or its nearest ancestor's."""
    return _row(error)[0]


def http_status(error: MakelError) -> int:
    """The HTTP status for an error: its own row of `CODES`, or its nearest ancestor's."""
    return _row(error)[1]


def _row(error: MakelError) -> tuple[int, int]:
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)
