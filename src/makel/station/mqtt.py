"""Every decision to an MQTT broker, at least once, none left out.

The record is the queue. What the broker acknowledged is remembered by number, and what comes after that number is read
from the record, a few at a time. So an outage of the broker costs no memory and no message, however long it lasts.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import ssl
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from makel.errors import MakelError, MissingExtraError, StoreError, UsageError

if TYPE_CHECKING:
    import paho.mqtt.client as paho

    from makel.station.decisions import Recorded
    from makel.station.store import Store

logger = logging.getLogger(__name__)

PASSWORD_VARIABLE = "MAKEL_MQTT_PASSWORD"
"""Environment variable with the broker's password: a command line is there for every user of a machine to read."""
IN_FLIGHT = 20
"""Messages sent and not acknowledged, at most."""
LOOK_S = 5.0
"""Seconds until the record is looked at again where nobody told of a new decision, or where it could not be read."""


@dataclass(frozen=True)
class Broker:
    """Where messages go, from mqtt://[user@]host[:port][/topic], or mqtts:// for TLS.

    Attributes:
        host: The broker's host.
        port: Its port: 1883, or 8883 with TLS, where the URL has none.
        tls: Whether the connection is encrypted and the broker's certificate checked against the system's authorities.
        user: User name; "" for none.
        topic: What all topics begin with.
    """

    host: str
    port: int
    tls: bool
    user: str
    topic: str

    @classmethod
    def parse(cls, url: str) -> Broker:
        """Read a URL.

        Raises:
            UsageError: It is of another kind, or has a password in it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"{url!r} is no URL of a broker: {error}") from None
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname:
            raise UsageError(f"{url!r} is no URL of a broker: write mqtt://host:1883/topic, or mqtts:// for TLS")
        if parts.password is not None:
            raise UsageError(
                f"a password in the broker's URL can be read by everybody: put it into {PASSWORD_VARIABLE}"
            )
        topic = unquote(parts.path).strip("/") or "makel"
        if set(topic) & set("+#\0"):
            raise UsageError(f"the topic {topic!r} has +, # or NUL in it, which MQTT keeps for subscribers")
        tls = parts.scheme == "mqtts"
        return cls(parts.hostname, port or (8883 if tls else 1883), tls, unquote(parts.username or ""), topic)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.topic}"


class MqttPublisher:
    """Publishes decisions, in a thread of its own, with QoS 1.

    TOPIC/MODEL/decision    each decision: the JSON of `Recorded`
    TOPIC/status            "online" or "offline", retained; the broker says "offline" itself where the station vanishes

    A message may come twice, after an outage; its `number` and `hash` are then the same. The first start begins with
    the next decision and leaves out the history.

    Attributes:
        broker: Where they go.
        acknowledged: Number of the last decision such that the broker has it and all before.
    """

    def __init__(
        self, url: str, store: Store, listen: Callable[[Callable[[Recorded], None]], Callable[[], None]], memory: Path
    ) -> None:
        """Get ready; `start` begins.

        Args:
            url: mqtt://[user@]host[:port][/topic]; the password is in the environment, MAKEL_MQTT_PASSWORD.
            store: The record.
            listen: `Station.listen`; tells that there is something new.
            memory: File that keeps `acknowledged` over restarts.

        Raises:
            MissingExtraError: paho-mqtt is not installed.
            UsageError: The URL cannot be used.
            StoreError: `memory` is damaged, or the record cannot be read.
        """
        if find_spec("paho") is None:
            raise MissingExtraError("publishing to MQTT", "station")
        self.broker = Broker.parse(url)
        self._store, self._listen, self._memory = store, listen, memory
        self._link_problem, self._record_problem = f"not connected to {self.broker} yet", ""
        self.acknowledged = self._recall()
        self._sent = self.acknowledged
        self._pending: dict[int, int] = {}  # message id → number of the decision; only the thread below touches it
        self._acknowledgements: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._wake, self._online, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="makel-mqtt", daemon=True)
        self._unsubscribe: Callable[[], None] = lambda: None
        self._client = self._connectable()

    @property
    def problem(self) -> str:
        """Why messages are not going out right now; "" where they are."""
        return self._link_problem or self._record_problem

    def start(self) -> None:
        """Begin to connect and to publish. A broker that is not there is tried again, after 1 s and at most 30 s."""
        self._remember()  # what is decided before the broker is first there counts as missed
        self._unsubscribe = self._listen(lambda _: self._wake.set())
        self._client.connect_async(self.broker.host, self.broker.port, keepalive=15)
        self._client.loop_start()
        self._thread.start()

    def stop(self) -> None:
        """Say "offline", and end. What the broker does not have yet goes out after the next start."""
        self._unsubscribe()
        self._stop.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self._online.is_set():
            try:
                self._client.publish(f"{self.broker.topic}/status", "offline", qos=1, retain=True).wait_for_publish(2)
            except (RuntimeError, ValueError):  # the connection went meanwhile: the broker says it by itself
                logger.info("the broker %s was gone before the station said goodbye", self.broker)
        self._client.disconnect()
        self._client.loop_stop()

    def _connectable(self) -> paho.Client:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        # No client id of its own: two stations under one id would throw each other out for ever.
        client = paho.Client(CallbackAPIVersion.VERSION2)
        if self.broker.user:
            client.username_pw_set(self.broker.user, os.environ.get(PASSWORD_VARIABLE))
        if self.broker.tls:
            client.tls_set()
        client.will_set(f"{self.broker.topic}/status", "offline", qos=1, retain=True)
        client.reconnect_delay_set(min_delay=1, max_delay=30)
        client.max_inflight_messages_set(IN_FLIGHT)
        client.on_connect = self._connected
        client.on_connect_fail = self._unreachable
        client.on_disconnect = self._disconnected
        client.on_publish = self._published
        return client

    # These run in paho's thread, which holds locks of paho's meanwhile: they only leave word for the thread below.

    def _connected(self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._link(f"the broker {self.broker} refuses: {reason}")
            return
        client.publish(f"{self.broker.topic}/status", "online", qos=1, retain=True)
        self._link("")
        self._online.set()
        self._wake.set()

    def _unreachable(self, _client: paho.Client, _data: Any) -> None:
        error = sys.exc_info()[1]  # paho calls this where it handles what went wrong, and hands on nothing of it
        why = str(error)
        if isinstance(error, ssl.SSLCertVerificationError):
            why = (
                f"its certificate is not trusted ({error.verify_message}): add its authority to the system's, or name "
                "the authority's file in SSL_CERT_FILE"
            )
        self._link(f"the broker {self.broker} cannot be reached: {why}")

    def _disconnected(self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self._online.is_set() and not self._stop.is_set():
            self._link(f"the broker {self.broker} is gone: {reason}")
        self._online.clear()

    def _published(self, _client: paho.Client, _data: Any, message_id: int, _reason: Any, _properties: Any) -> None:
        self._acknowledgements.put(message_id)
        self._wake.set()

    def _link(self, problem: str) -> None:
        if problem != self._link_problem:
            logger.warning("MQTT: %s", problem or f"connected to {self.broker}")
            self._link_problem = problem

    def _run(self) -> None:
        while not self._stop.is_set():
            # Another process may add to the record without a word, so it is looked at from time to time.
            self._wake.wait(LOOK_S)
            self._wake.clear()
            try:
                self._send()
                problem = ""
            except (MakelError, OSError) as error:
                problem = str(error)
            except Exception as error:  # as in Patrol: never end in silence
                logger.exception("publishing failed")
                problem = f"{type(error).__name__}: {error}"
            if problem != self._record_problem:
                logger.warning("MQTT: %s", problem or "publishing again")
                self._record_problem = problem
        self._note_acknowledged()

    def _send(self) -> None:
        while self._online.is_set() and not self._stop.is_set():
            self._note_acknowledged()
            room = IN_FLIGHT - len(self._pending)
            found = self._store.after(self._sent, limit=room) if room > 0 else []
            if not found:
                return
            for one in found:
                topic = f"{self.broker.topic}/{one.decision.model}/decision"
                # paho keeps it until it is acknowledged, and sends it again after a reconnection.
                message = self._client.publish(topic, json.dumps(one.to_json()), qos=1)
                self._pending[message.mid] = self._sent = one.number

    def _note_acknowledged(self) -> None:
        before = self.acknowledged
        while not self._acknowledgements.empty():
            self._pending.pop(self._acknowledgements.get(), None)
        self.acknowledged = min(self._pending.values(), default=self._sent + 1) - 1
        if self.acknowledged != before:
            self._remember()

    def _recall(self) -> int:
        newest = self._store.head().number
        try:
            kept = json.loads(self._memory.read_text(encoding="utf-8"))
            if not isinstance(kept["acknowledged"], int):
                raise TypeError(f"{kept['acknowledged']!r} is no number")
        except FileNotFoundError:
            return newest
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{self._memory} is damaged ({error}): delete it to go on with the next decision"
            ) from error
        if kept.get("broker") != str(self.broker):  # another one: what was sent before is nothing to it
            return newest
        return min(kept["acknowledged"], newest)  # a new record begins at 1 again

    def _remember(self) -> None:
        draft = self._memory.with_suffix(".tmp")
        kept = {"broker": str(self.broker), "acknowledged": self.acknowledged}
        draft.write_text(json.dumps(kept), encoding="utf-8")
        draft.replace(self._memory)
