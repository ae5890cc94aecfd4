"""The station: models on their lines, and the one way from an image to a recorded decision."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal, Self

from numpy.typing import NDArray

from makel.errors import CandidateError, MakelError, ModelFolderError, NotFoundError, Overloaded, UsageError
from makel.model.inspector import Inspector
from makel.station.budget import Budget
from makel.station.decisions import Decision, Recorded, now
from makel.station.decoding import MAX_PIXELS, Decoders
from makel.station.ending import DRAIN_S
from makel.station.fitting import Fitting
from makel.station.journal import CAPACITY_BYTES, Journal, Recorder
from makel.station.line import Judged, Line
from makel.station.listeners import Listeners
from makel.station.pictures import Pictures
from makel.station.recording import Entry, Recording
from makel.station.registry import Registry, Version
from makel.station.seal import Seal
from makel.station.store import Store
from makel.types import Label, Verdict


@dataclass(frozen=True)
class Settings:
    """What a station allows itself.

    Attributes:
        queue: Images under way at most, for each model.
        batch: Images a model takes at once, at most.
        workers: Images decoded at once, for each model.
        deadline_s: Seconds after which an image without a decision is a fail-safe reject; None for no limit.
        max_pixels: A larger image is a fail-safe reject.
        max_held_bytes: Bytes of all images under way.
        journal_bytes: Room for decisions while the record is away.
        threads: Threads an inspection uses at most; None for the cores this process may use, at most 4.
        provider: What models run on, see `makel.model.session.PROVIDERS`.
        trusted: Files of public keys and certificates: only models that one of them signed are served. Without any,
            all are.
        signing_key: File of the private key that the station signs its own models with; None for one in its folder.
    """

    queue: int = 64
    batch: int = 4
    workers: int = 2
    deadline_s: float | None = None
    max_pixels: int = MAX_PIXELS
    max_held_bytes: int = 512 * 2**20
    journal_bytes: int = CAPACITY_BYTES
    threads: int | None = None
    provider: str = "cpu"
    trusted: tuple[Path, ...] = ()
    signing_key: Path | None = None


@dataclass(frozen=True)
class Changed:
    """Something other than a new decision that whoever shows the station has to show anew.

    Attributes:
        what: "models" (versions, and which one judges), "answer" or "candidates".
        detail: Plain values for JSON: the name of the model; of an answer the decision with what is said of it now.
    """

    what: Literal["models", "answer", "candidates"]
    detail: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """A decision, recorded, and what it rests on.

    Attributes:
        recorded: The decision; its number is 0 while the record is away and it waits in the journal.
        verdict: What the model said; None for a fail-safe reject.
        inspector: What said it; None where no model answered.
    """

    recorded: Recorded
    verdict: Verdict | None
    inspector: Inspector | None

    @property
    def decision(self) -> Decision:
        """What was decided."""
        return self.recorded.decision


class Station:
    """Models, their lines, the record and whoever listens. Thread-safe.

    Attributes:
        folder: Where everything the station keeps lies.
        settings: What it allows itself.
        registry: The models and their versions.
        store: The record.
        pictures: The images behind the decisions.
        fitting: The fits that run beside the lines.
        decoders: What makes pixels of images from outside.
        seal: Whom it trusts, and its own key.
        refused: How many images were refused because there was no room.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings,
        registry: Registry,
        store: Store,
        recorder: Recorder,
        pictures: Pictures,
        listeners: Listeners[Recorded | Changed],
        decoders: Decoders | None = None,
        seal: Seal | None = None,
    ) -> None:
        """Use `open`."""
        self.seal = seal or Seal(folder)
        self.folder, self.settings, self.registry = folder, settings, registry
        self.store, self.pictures = store, pictures
        self._recorder = recorder
        self._listeners = listeners
        self._watchers: list[Callable[[Outcome], None]] = []
        self._warners: list[Callable[[], list[str]]] = []
        self._guards: list[Callable[[str, int], str]] = []
        self._closers: list[Callable[[], None]] = []
        self._recording = Recording(recorder, pictures, self._listeners.tell)
        self._held = Budget(settings.max_held_bytes, "images under way")
        self.decoders = decoders or Decoders(2 * (os.cpu_count() or 1), max_pixels=settings.max_pixels)
        self._own_decoders = decoders is None
        self._looking_decoders = Decoders(1, max_pixels=settings.max_pixels, beside=self.decoders)
        self._lines: dict[str, Line] = {}
        self._broken: dict[str, str] = {}
        self._changing = threading.RLock()
        self._closing = self._closed = False
        self._looking = threading.Lock()
        self._earlier: Inspector | None = None
        self.fitting = Fitting(folder / "jobs", folder / "images", self._take_in)
        self.refused = 0

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: Settings | None = None,
        *,
        store: str | Path | None = None,
        decoders: Decoders | None = None,
    ) -> Self:
        """Open a station's folder, or make one, and put its active models on their lines.

        Args:
            folder: Holds models/, pictures/, store.sqlite and journal.
            settings: What it allows itself.
            store: Path or URL of the record in place of folder/store.sqlite.
            decoders: What decodes, shared with others and closed by whoever made it; None for its own.

        Raises:
            StoreError: The record cannot be opened, or another process has this folder.
            BrokenRecordError: The journal, in which decisions wait for the record, was damaged.
        """
        settings = settings or Settings()
        seal = Seal(folder, settings.trusted, settings.signing_key)
        registry = Registry(folder / "models", threads=settings.threads, provider=settings.provider, seal=seal)
        journal = Journal(folder / "journal", settings.journal_bytes)
        try:
            record = Store.open(folder / "store.sqlite" if store is None else store)
        except BaseException:
            journal.close()
            raise
        listeners = Listeners[Recorded | Changed]()
        recorder = Recorder(record, journal, arrived=listeners.tell)
        station = cls(
            folder, settings, registry, record, recorder, Pictures(folder / "pictures"), listeners, decoders, seal
        )
        for name in registry.names():
            station._start(name)
        return station

    def models(self) -> list[str]:
        """The names that are served, sorted."""
        return sorted(self._lines)

    def line(self, model: str | None = None) -> Line:
        """The line of a model.

        Args:
            model: The name it is served under; may be left out where there is one only.

        Raises:
            NotFoundError: No model is served, or none of this name.
            UsageError: There are several, and none was named.
            ModelFolderError: The model cannot be loaded.
        """
        if model is None:
            if len(self._lines) > 1:
                raise UsageError(f"which model? There are {', '.join(self.models())}")
            if not self._lines:
                raise NotFoundError("no model is served here: add one first")
            return next(iter(self._lines.values()))
        line = self._lines.get(model)
        if line is None:
            if model in self._broken:
                raise ModelFolderError(self._broken[model])
            self.registry.active(model)  # says which there are
            raise NotFoundError(f"{model!r} is not served yet: it was added a moment ago")
        return line

    def submit(
        self,
        image: bytes,
        *,
        model: str | None = None,
        name: str = "",
        source: str,
        arrival: str = "",
        deadline_s: float | None = None,
        group: object = None,
    ) -> Future[Outcome]:
        """Accept an image.

        Args:
            image: The bytes of an image file. What is no image is a fail-safe reject, and recorded.
            model: The name of the model; may be left out where there is one only.
            name: The caller's name for the part.
            source: Where it came from, see `Decision`.
            arrival: For a file, what tells this delivery of it from any other, see `Decision`.
            deadline_s: Seconds from now after which it is a fail-safe reject; None for the station's own.
            group: What it came with, such as the request; images of several are taken in turn. None for the source.

        Returns:
            What becomes of it, once that is in the record. Cancelling it takes an image back that nothing was done
            with; one that is on its way is decided and recorded all the same.

        Raises:
            Overloaded: There is no room. Nothing was accepted, nothing is recorded.
            NotFoundError: There is no such model.
            UsageError: There are several models, and none was named.
        """
        line = self.line(model)
        try:
            return self._submit(line, image, name, source, arrival, deadline_s, group or source)
        except Overloaded:
            self.refused += 1
            raise

    def decide(
        self,
        image: bytes,
        *,
        model: str | None = None,
        name: str = "",
        source: str,
        arrival: str = "",
        deadline_s: float | None = None,
    ) -> Outcome:
        """Decide an image and wait for it; see `submit`.

        Raises:
            Overloaded: There is no room. Nothing was accepted, nothing is recorded.
            NotFoundError: There is no such model.
            UsageError: There are several models, and none was named.
            StoreError: The decision could be neither recorded nor put into the journal; it does not count.
        """
        return self.submit(
            image, model=model, name=name, source=source, arrival=arrival, deadline_s=deadline_s
        ).result()

    def reject(
        self,
        reason: str,
        *,
        image: bytes = b"",
        model: str | None = None,
        name: str = "",
        source: str,
        arrival: str = "",
    ) -> Outcome:
        """Record a fail-safe reject that no model is asked about, and wait for it: no picture came, or not a whole one.

        Args:
            reason: Why, in words for people.
            image: The bytes that came, if any; kept like those of any other reject.
            model: As in `submit`, and so are `name`, `source` and `arrival`.

        Raises:
            NotFoundError: There is no such model.
            UsageError: There are several models, and none was named.
            StoreError: It could be neither recorded nor put into the journal; it does not count.
        """
        line, future = self.line(model), Future[Outcome]()
        decision = _decision(now(), line.name, source, name, arrival, Judged(None, reason, None, 0.0))

        def settle(result: Recorded | MakelError) -> None:
            if isinstance(result, MakelError):
                future.set_exception(result)
                return
            outcome = Outcome(result, None, None)
            for watcher in self._watchers:
                watcher(outcome)
            future.set_result(outcome)

        self._recording.put(Entry(decision, image, settle))
        return future.result()

    def arrived(self, arrival: str) -> list[Recorded]:
        """The decisions on one delivery of a file, also those that wait for the record (their number is 0).

        Raises:
            StoreError: The record cannot be read now.
        """
        # In this order: what moves from the journal into the record between the two looks is seen at least once.
        waiting = self._recorder.arrived(arrival)
        return waiting + self.store.arrived(arrival)

    def listen(self, callback: Callable[[Recorded], None]) -> Callable[[], None]:
        """Call somebody for every recorded decision, in order, on a thread of its own; see `Listeners`.

        Returns:
            What ends that.
        """
        return self._listeners.add(lambda told: callback(told) if isinstance(told, Recorded) else None)

    def follow(self, callback: Callable[[Recorded | Changed], None]) -> Callable[[], None]:
        """As `listen`, and for every `Changed` between the decisions as well."""
        return self._listeners.add(callback)

    def changed(self, what: Literal["models", "answer", "candidates"], **detail: Any) -> None:
        """Tell all who follow."""
        self._listeners.tell([Changed(what, detail)])

    def watch_outcomes(self, callback: Callable[[Outcome], None]) -> None:
        """Call something quick for every outcome, before it is answered: counters, not connections."""
        self._watchers.append(callback)

    def answer(self, number: int, answer: Label | None, by: str) -> Recorded:
        """Record what a person says of a part, and keep its picture longest; None takes back what was said.

        Raises:
            NotFoundError: No decision has this number.
            StoreError: The record cannot be written now.
        """
        self.store.answer(number, answer, by)
        recorded = self.store.get(number)
        self._recording.wait_for_picture(recorded.decision.image_sha256)
        self.pictures.answered(recorded.decision.image_sha256)
        self.changed("answer", **recorded.to_json())
        return recorded

    def picture(self, recorded: Recorded) -> bytes:
        """The image behind a decision.

        Raises:
            NotFoundError: It is not kept any more.
            StoreError: It was damaged or changed.
        """
        self._recording.wait_for_picture(recorded.decision.image_sha256)
        return self.pictures.read(recorded.decision.image_sha256)

    def inspector_of(self, decision: Decision) -> Inspector:
        """The model that made a decision, whether it is still the active one or not.

        Raises:
            NotFoundError: That version is not here any more.
            ModelFolderError: It does not verify any more.
        """
        line = self._lines.get(decision.model)
        if line is not None and line.inspector.model_id == decision.model_id:
            return line.inspector
        version = self.registry.of(decision.model, decision.model_id)
        if version is None:
            raise NotFoundError(f"{decision.model} has no version {decision.model_id} any more, which decided this")
        return self.inspector(decision.model, version.version)

    def inspector(self, model: str, number: int | None = None) -> Inspector:
        """A version of a model, to look at images with; the active one where no number is given.

        Raises:
            NotFoundError: There is no such model, or no such version.
            ModelFolderError: It does not verify, or computes something else here.
        """
        version = self.registry.version(model, number)
        line = self._lines.get(model)
        if line is not None and line.inspector.model_id == version.model_id:
            return line.inspector
        with self._looking:
            if self._earlier is None or self._earlier.model_id != version.model_id:
                self._earlier = self.registry.load(model, version.version)
            return self._earlier

    def look(self, inspector: Inspector, image: NDArray[Any]) -> Verdict:
        """A verdict that is not recorded: to draw a picture of an earlier decision, to try an image. One at a time.

        Raises:
            ImageError: The image is not of the kind the model was fitted on.
        """
        with self._looking:
            return inspector.inspect(image)

    def decode(self, image: bytes) -> NDArray[Any]:
        """The pixels of an image to look at or to draw on, in a process beside those of the lines.

        Raises:
            ImageError: The image cannot be read, in the time and memory that one of its size takes.
            Overloaded: No process for it can be had.
        """
        return self._looking_decoders.decode(image)

    def add(self, name: str, source: Path, *, by: str, role: str) -> tuple[Version, bool]:
        """Take a model folder in as a new version; the first of its name is served at once.

        Returns:
            The version, and whether it is new.

        Raises:
            UsageError: The name cannot be used.
            ModelFolderError: The folder does not verify, or computes something else here.
        """
        with self._changing:
            version, new = self.registry.add(name, source)
            if new:
                detail = {"model": name, "version": version.version, "model_id": version.model_id}
                self.store.audit(by, role, "add model", detail)
            if name not in self._lines:
                self._start(name)
            if new:
                self.changed("models", model=name)
            return version, new

    def _take_in(self, name: str, source: Path, *, by: str, role: str) -> tuple[Version, bool]:
        """As `add`, for what was fitted here and is signed by nobody yet."""
        self.seal.sign(source)
        return self.add(name, source, by=by, role=role)

    def scratch(self) -> Path:
        """A folder for what arrives and is not taken in yet, on the same disk."""
        folder = self.folder / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def activate(self, name: str, number: int, *, by: str, role: str) -> Version:
        """Let another version judge, from the next image on. What is under way ends with the one before.

        Raises:
            NotFoundError: There is no such version.
            CandidateError: It must not judge, see `guard`.
            ModelFolderError: It does not verify, or computes something else here. The one before goes on.
            StoreError: The change cannot be recorded, so it is not made.
        """
        with self._changing:
            for check in self._guards:
                if reason := check(name, number):
                    raise CandidateError(reason)
            inspector = self.registry.load(name, number)
            self.store.audit(by, role, "activate", {"model": name, "version": number, "model_id": inspector.model_id})
            self.registry.set_active(name, number)
            self._put(name, inspector)
            self.changed("models", model=name)
            return self.registry.version(name)

    def rollback(self, name: str, *, by: str, role: str) -> Version:
        """Let the version before judge again.

        Raises:
            NotFoundError: There is no such model.
            UsageError: There was no version before.
            ModelFolderError: It does not verify any more. The present one goes on.
            StoreError: The change cannot be recorded, so it is not made.
        """
        with self._changing:
            number = self.registry.before(name)
            inspector = self.registry.load(name, number)
            self.store.audit(by, role, "roll back", {"model": name, "version": number, "model_id": inspector.model_id})
            self.registry.step_back(name)
            self._put(name, inspector)
            self.changed("models", model=name)
            return self.registry.version(name)

    def obstacles(self) -> list[str]:
        """Why no image can be decided now; empty where it can."""
        found = ["the station is being closed"] if self._closing else []
        if not self._lines:
            found.append("no model is served")
        found += [stuck for line in self._lines.values() if (stuck := line.stuck)]
        return found + ([reason] if (reason := self._recording.blocked) else [])

    def warnings(self) -> list[str]:
        """What is wrong while images are decided all the same."""
        found = list(self._broken.values())
        for name in self.models():
            try:
                problem = self.registry.version(name).problem
            except MakelError as error:
                problem = str(error)
            if problem:
                found.append(f"{name} goes on from memory, but its folder no longer verifies: {problem}")
        if outage := self._recorder.outage:
            found.append(f"{outage.waiting} decisions wait for the record since {outage.since}: {outage.reason}")
        if self._recording.pictures_problem:
            found.append(f"pictures are not kept: {self._recording.pictures_problem}")
        if self.decoders.problem:
            found.append(f"no image can be decoded: {self.decoders.problem}")
        for more in self._warners:
            found += more()
        return found

    def warn_of(self, more: Callable[[], list[str]]) -> None:
        """Let `warnings` also say what this gives: what is wrong with a connection of the line."""
        self._warners.append(more)

    def guard(self, check: Callable[[str, int], str]) -> None:
        """Let `activate` ask this first: it gives why a version of a model must not judge, "" where it may."""
        self._guards.append(check)

    def before_closing(self, end: Callable[[], None]) -> None:
        """Let `close` call this first, while everything still works."""
        self._closers.append(end)

    @property
    def held_bytes(self) -> int:
        """Bytes of all images under way, until their pictures are kept."""
        return self._held.held_bytes

    @property
    def waiting(self) -> int:
        """Decisions that wait for the record to come back."""
        outage = self._recorder.outage
        return outage.waiting if outage else 0

    def drain(self, timeout_s: float = DRAIN_S) -> bool:
        """Accept no more images, and finish those that were accepted.

        Args:
            timeout_s: How long that may take. What has no decision then is recorded as a fail-safe reject: neither a
                model nor a decoder keeps the station from ending.

        Returns:
            Whether every image was judged.
        """
        self._closing = True
        end = monotonic() + timeout_s
        finished = [line.drain(max(0.0, end - monotonic())) for line in list(self._lines.values())]
        return all(finished)

    def close(self, timeout_s: float = DRAIN_S) -> bool:
        """Accept nothing more, finish what was accepted, and end.

        Args:
            timeout_s: As in `drain`.

        Returns:
            Whether every image was judged. A second call has nothing to do.
        """
        with self._changing:
            if self._closed:
                return True
            self._closed = self._closing = True
        for end in self._closers:
            end()
        self.fitting.close()
        finished = self.drain(timeout_s)
        for line in self._lines.values():
            line.close()
        self._recording.close()
        self._recorder.close()
        self._listeners.close()
        self.store.close()
        self._looking_decoders.close()
        if self._own_decoders:
            self.decoders.close()
        return finished

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _submit(
        self, line: Line, image: bytes, name: str, source: str, arrival: str, deadline_s: float | None, group: object
    ) -> Future[Outcome]:
        if self._closing:
            raise Overloaded("the station is being closed: send it again later")
        self._recording.check()
        self._held.take(len(image))
        at, future = now(), Future[Outcome]()

        def settle(judged: Judged, result: Recorded | MakelError) -> None:
            if isinstance(result, MakelError):
                outcome: Outcome | MakelError = result
            elif result.decision.reason:  # also where the deadline passed before the record took it
                outcome = Outcome(result, None, None)
            else:
                outcome = Outcome(result, judged.verdict, judged.inspector)
            if isinstance(outcome, Outcome):
                for watcher in self._watchers:
                    watcher(outcome)
            if future.set_running_or_notify_cancel():
                if isinstance(outcome, Outcome):
                    future.set_result(outcome)
                else:
                    future.set_exception(outcome)

        def done(judged: Judged) -> None:
            decision = _decision(at, line.name, source, name, arrival, judged)
            late = _decision(at, line.name, source, name, arrival, judged.late()) if judged.deadline_s else None
            self._recording.put(
                Entry(
                    decision,
                    image,
                    lambda result: settle(judged, result),
                    lambda: self._held.give(len(image)),
                    deadline_s=judged.deadline_s,
                    late=late,
                )
            )

        def cancelled(future: Future[Outcome]) -> None:
            if future.cancelled() and line.cancel(ticket):
                self._held.give(len(image))

        try:
            ticket = line.submit(
                image,
                name=name or "image",
                done=done,
                deadline_s=self.settings.deadline_s if deadline_s is None else deadline_s,
                group=group,
            )
        except BaseException:
            self._held.give(len(image))
            raise
        future.add_done_callback(cancelled)
        return future

    def _start(self, name: str) -> None:
        try:
            self._put(name, self.registry.load(name))
        except MakelError as error:
            self._broken[name] = f"{name} is not served: {error}"

    def _put(self, name: str, inspector: Inspector) -> None:
        self._broken.pop(name, None)
        if name in self._lines:
            self._lines[name].swap(inspector)
            return
        settings = self.settings
        self._lines[name] = Line(
            name,
            inspector,
            queue=settings.queue,
            batch=settings.batch,
            workers=settings.workers,
            decode=self.decoders.decode,
        )


def _decision(at: str, model: str, source: str, name: str, arrival: str, judged: Judged) -> Decision:
    verdict = judged.verdict
    return Decision(
        at=at,
        model=model,
        model_id=verdict.model_id if verdict else "",
        source=source,
        name=name,
        image_sha256="",
        verdict=verdict.verdict if verdict else "reject",
        reason=judged.reason,
        score=verdict.score if verdict else None,
        threshold=verdict.threshold if verdict else None,
        p_value=verdict.p_value if verdict else None,
        regions=verdict.regions if verdict else (),
        latency_ms=round(judged.latency_ms, 3),
        arrival=arrival,
        look=judged.look,
        zones=verdict.zones if verdict else (),
    )
