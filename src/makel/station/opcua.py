"""The line as an OPC UA server: Start, Ready, Busy, ResultValid and the result, for the controller of a line.

In the spirit of OPC 40100-1 (machine vision, VDMA): the names of its states (Ready, SingleExecution,
ContinuousExecution, Error) and its handshake, as plain variables and one method that any controller can use; it does
not claim to be that specification's information model.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from makel.errors import MissingExtraError, UsageError
from makel.station.opcua_line import OpcuaLine

if TYPE_CHECKING:
    from asyncua.server.server import Server
    from asyncua.server.user_managers import UserManager

    from makel.station.decisions import Recorded
    from makel.station.trigger import Trigger

logger = logging.getLogger(__name__)

NAMESPACE = "urn:makel:station"
USER = "makel"
PASSWORD_VARIABLE = "MAKEL_OPCUA_PASSWORD"
"""Environment variable with the password of the user `makel`, needed where the server is open to other machines."""


class OpcuaServer:
    """Serves the variables of every line, in a thread of its own."""

    def __init__(
        self,
        url: str,
        lines: Mapping[str, Trigger | None],
        listen: Callable[[Callable[[Recorded], None]], Callable[[], None]],
        folder: Path,
        *,
        obstacles: Callable[[], list[str]] = list,
        heartbeat_s: float = 1.0,
    ) -> None:
        """Get ready; `start` begins.

        Args:
            url: opc.tcp://host:port to listen at. Beyond this machine the environment variable MAKEL_OPCUA_PASSWORD is
                needed; then nobody comes in but the user `makel`, signed and encrypted (Basic256Sha256).
            lines: Each model by name with its trigger; None for one that decides whatever arrives.
            listen: `Station.listen`, for lines without a trigger.
            folder: Keeps the server's key and its certificate.
            obstacles: Why nothing can be decided now, as `Station.obstacles`; such a line is not Ready.
            heartbeat_s: Seconds from one step of Heartbeat to the next.

        Raises:
            MissingExtraError: asyncua is not installed.
            UsageError: The URL cannot be used, or a password is missing.
        """
        if find_spec("asyncua") is None:
            raise MissingExtraError("the OPC UA server", "opcua")
        self._url, self._address = url, _address(url)
        self._open = not _is_loopback(self._address[0])
        self._password = os.environ.get(PASSWORD_VARIABLE, "")
        if self._open and not self._password:
            raise UsageError(
                f"{url} is open to other machines: put a password into {PASSWORD_VARIABLE}, or use 127.0.0.1"
            )
        self._listen, self._folder, self._heartbeat_s = listen, folder, heartbeat_s
        # One thread a line: a part that waits for its picture keeps nobody else's waiting.
        self._threads = ThreadPoolExecutor(max(1, len(lines)), thread_name_prefix="makel-opcua")
        self._lines = {model: OpcuaLine(model, trigger, obstacles, self._threads) for model, trigger in lines.items()}
        self._thread = threading.Thread(target=self._run, name="makel-opcua", daemon=True)
        self._started, self._failure = threading.Event(), ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            UsageError: The address cannot be listened at.
        """
        try:
            socket.create_server(self._address).close()  # known at once, not after the seconds a server takes to make
        except OSError as error:
            raise UsageError(f"no OPC UA server at {self._url}: {error.strerror or error}") from None
        self._thread.start()
        self._started.wait()
        if self._failure:
            self._thread.join()
            raise UsageError(f"no OPC UA server at {self._url}: {self._failure}")

    def stop(self) -> None:
        """Finish the parts at hand, and end."""
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
        if self._thread.ident is not None:
            self._thread.join()
        self._threads.shutdown()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._started.is_set():
                logger.exception("the OPC UA server ended")
            self._failure = " ".join(str(error).split()) or type(error).__name__
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await self._server()
        index = await server.register_namespace(NAMESPACE)
        for line in self._lines.values():
            await line.add(server, index)
        async with server:
            unsubscribe = self._listen(self._heard)
            beat = asyncio.create_task(self._beat())
            self._started.set()
            await self._end.wait()
            unsubscribe()
            beat.cancel()
            for line in self._lines.values():
                await line.finish()

    async def _server(self) -> Server:
        from asyncua import ua
        from asyncua.server.server import Server

        server = Server(user_manager=cast("UserManager", _Users(self._password if self._open else None)))
        await server.init()
        server.set_endpoint(self._url)
        server.set_server_name("makel")
        await server.set_application_uri(NAMESPACE)
        if self._open:
            await self._load_certificate(server)
            server.set_security_policy(
                [ua.SecurityPolicyType.Basic256Sha256_SignAndEncrypt, ua.SecurityPolicyType.Basic256Sha256_Sign]
            )
            server.set_identity_tokens([ua.UserNameIdentityToken])
        else:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
            server.set_identity_tokens([ua.AnonymousIdentityToken])
        return server

    async def _load_certificate(self, server: Server) -> None:
        from asyncua.crypto.cert_gen import setup_self_signed_certificate
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key, certificate = self._folder / "opcua-key.pem", self._folder / "opcua-certificate.der"
        before = os.umask(0o077)  # the key is for this user alone
        try:
            await setup_self_signed_certificate(
                key,
                certificate,
                NAMESPACE,
                socket.gethostname(),
                [ExtendedKeyUsageOID.SERVER_AUTH],
                {"commonName": "makel"},
            )
        finally:
            os.umask(before)
        await server.load_certificate(str(certificate))
        await server.load_private_key(str(key))

    def _heard(self, recorded: Recorded) -> None:
        """A decision of any line; called in a thread of the station's."""
        line = self._lines.get(recorded.decision.model)
        if not recorded.decision.of_the_line:
            return  # somebody tries an image by hand: the part that lies there now is another one
        if line is not None and not line.triggered and self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: line.keep(line.show(recorded)))

    async def _beat(self) -> None:
        beats = 0
        while True:
            beats = (beats + 1) % 2**32
            for line in self._lines.values():
                await line.beat(beats)
            await asyncio.sleep(self._heartbeat_s)


class _Users:
    """Who may come in: on this machine everybody, from others the one user; nobody as administrator."""

    def __init__(self, password: str | None) -> None:
        self._password = password

    def get_user(self, _server: Any, username: str | None = None, password: str | None = None, **_: Any) -> Any:
        import hmac

        from asyncua.crypto.permission_rules import User, UserRole

        if self._password is not None:
            known = username == USER and hmac.compare_digest((password or "").encode(), self._password.encode())
            if not known:
                return None
        return User(role=UserRole.User, name=username)


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is no address of an OPC UA server: {error}") from None
    if parts.scheme != "opc.tcp" or not host or not port:
        raise UsageError(f"{url!r} is no address of an OPC UA server: write opc.tcp://127.0.0.1:4840")
    return host, port


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
