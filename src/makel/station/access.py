"""Who may do what: tokens, roles, and the checks that every request passes first.

On the loopback interface nobody needs a token, unless the station was told to ask. Two things still keep other pages of
a browser on the same machine out: the Host header must name this machine (a page whose name was rebound to 127.0.0.1
sends its own), and a request that changes something must not come from another origin.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import threading
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Depends, Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from makel.errors import ForbiddenError, MakelError, NotFoundError, UnauthorisedError, UsageError
from makel.station.decisions import now
from makel.station.problems import response_to

Role = Literal["operator", "engineer"]
ROLES: tuple[Role, ...] = ("operator", "engineer")
"""Each may do what those before it may."""

COOKIE = "makel_token"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    # The page's own files are all it may load; nothing may frame it but itself, which shows reports.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Principal:
    """Who asks.

    Attributes:
        name: For the audit.
        role: What they may do.
    """

    name: str
    role: Role


LOCAL = Principal("local", "engineer")
"""Whoever sits at this machine."""


@dataclass(frozen=True)
class Token:
    """A token at rest.

    The secret is 256 random bits, so a fast hash keeps it: there is nothing to guess that a slow one would protect.

    Attributes:
        id: Its public part.
        name: Whom it was made for.
        role: What they may do.
        salt: Hexadecimal.
        sha256: Of salt and secret, hexadecimal.
        created: UTC, ISO 8601.
    """

    id: str
    name: str
    role: Role
    salt: str
    sha256: str
    created: str


class Tokens:
    """The tokens in a file. A change by another process counts at once."""

    def __init__(self, path: Path) -> None:
        """Use the tokens of a file, which need not be there yet."""
        self._path = path
        self._lock = threading.Lock()
        self._read: tuple[int, dict[str, Token]] = (-1, {})

    def all(self) -> list[Token]:
        """Every token, oldest first."""
        return [*self._all().values()]

    def add(self, role: str, name: str) -> str:
        """Make a token.

        Returns:
            What its owner sends. It is kept nowhere and can be shown this once only.

        Raises:
            UsageError: There is no such role.
        """
        known = next((each for each in ROLES if each == role), None)
        if known is None:
            raise UsageError(f"there is no role {role!r}: it is {' or '.join(ROLES)}")
        secret, salt, token_id = secrets.token_urlsafe(32), secrets.token_bytes(16), secrets.token_hex(4)
        token = Token(token_id, name or token_id, known, salt.hex(), _hash(salt, secret), now())
        self._write([*self.all(), token])
        return f"makel_{token_id}_{secret}"

    def remove(self, token_id: str) -> Token:
        """Make a token worthless.

        Raises:
            NotFoundError: There is none with this id.
        """
        tokens = self._all()
        if token_id not in tokens:
            raise NotFoundError(f"{self._path} has no token {token_id!r}: see `makel token list`")
        self._write([token for token in tokens.values() if token.id != token_id])
        return tokens[token_id]

    def owner(self, sent: str) -> Principal:
        """Who sends this.

        Raises:
            UnauthorisedError: Nobody known.
        """
        token = self.owner_of(sent)
        return Principal(token.name, token.role)

    def owner_of(self, sent: str) -> Token:
        """The token at rest that belongs to what was sent.

        Raises:
            UnauthorisedError: There is none.
        """
        prefix, _, rest = sent.partition("_")
        token_id, _, secret = rest.partition("_")
        token = self._all().get(token_id) if prefix == "makel" else None
        if token is None or not hmac.compare_digest(_hash(bytes.fromhex(token.salt), secret), token.sha256):
            raise UnauthorisedError("this token is not known here: ask for one made with `makel token add`")
        return token

    def _all(self) -> dict[str, Token]:
        with self._lock:
            try:
                changed = self._path.stat().st_mtime_ns
            except FileNotFoundError:
                return {}
            if changed != self._read[0]:
                try:
                    tokens = [_sound(Token(**each)) for each in json.loads(self._path.read_bytes())]
                except (OSError, ValueError, TypeError, RecursionError) as error:
                    raise UsageError(f"{self._path} is damaged: restore it, or move it away and add tokens") from error
                self._read = (changed, {token.id: token for token in tokens})
            return self._read[1]

    def _write(self, tokens: list[Token]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump([asdict(token) for token in tokens], file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)


@dataclass(frozen=True)
class Access:
    """What a station asks of those who come.

    Attributes:
        tokens: The tokens.
        token_needed: Whether one is needed.
        hosts: What the Host header may say, in lower case; None for anything.
    """

    tokens: Tokens
    token_needed: bool = False
    hosts: tuple[str, ...] | None = LOOPBACK

    @classmethod
    def on(cls, host: str, tokens: Tokens, *, token_needed: bool = False) -> Access:
        """The access rules for an address to listen on.

        Raises:
            UsageError: It is not the loopback, and there are no tokens.
        """
        if host in LOOPBACK and not token_needed:
            return cls(tokens)
        if not tokens.all():
            raise UsageError(
                f"--host {host} lets others in, and there is no token yet: `makel token add ROLE` makes one"
                if host not in LOOPBACK
                else "--require-token without a token lets nobody in: `makel token add ROLE` makes one"
            )
        return cls(tokens, token_needed=True, hosts=LOOPBACK if host in LOOPBACK else None)

    def admit(self, method: str, headers: Headers) -> Principal | None:
        """Who asks; None for somebody unknown, whom `check_role` lets do what needs no role.

        Raises:
            UnauthorisedError: An unknown token was sent.
            ForbiddenError: The request comes by way of another site.
        """
        host = headers.get("host", "")
        if self.hosts is not None and _host_name(host) not in self.hosts:
            raise ForbiddenError(f"this station is not {host[:100]!r}: call it by {' or '.join(self.hosts)}")
        if method not in ("GET", "HEAD", "OPTIONS"):
            check_site(headers)
        if not self.token_needed:
            return LOCAL
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            sent = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return self.tokens.owner(sent.strip()) if sent else None


class CheckAccess:
    """ASGI middleware: who asks is known or turned away, and every answer carries the security headers."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Wrap an app."""
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            who = self._access.admit(scope["method"], Headers(scope=scope))
        except MakelError as error:
            await response_to(error)(scope, receive, with_headers)
            return
        scope.setdefault("state", {})["principal"] = who
        scope["state"]["still_known"] = lambda: self._still_knows(scope, who)
        await self._app(scope, receive, with_headers)

    def _still_knows(self, scope: Scope, who: Principal | None) -> bool:
        """Whether whoever began a long answer may still have the rest of it."""
        try:
            return self._access.admit(scope["method"], Headers(scope=scope)) == who
        except MakelError:
            return False


def check_site(headers: Headers) -> None:
    """Turn away what a browser asks for because another site's page told it to: also a picture costs work here.

    Raises:
        ForbiddenError: It does.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin.lower().partition("://")[2] != host.lower():
        raise ForbiddenError(f"a page of {origin[:100]!r} asks, and this station serves its own page only")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ForbiddenError("a page of another site asks, and this station serves its own page only")


def check_role(who: Principal | None, role: Role) -> Principal:
    """Who asks, where they may.

    Raises:
        UnauthorisedError: Nobody known.
        ForbiddenError: Somebody whose role is less than that.
    """
    if who is None:
        raise UnauthorisedError("a token is needed: send it as 'Authorization: Bearer TOKEN'")
    if ROLES.index(who.role) < ROLES.index(role):
        raise ForbiddenError(f"{who.name} is {who.role}, and this needs the role {role}")
    return who


async def _known(request: Request) -> Principal:  # async: in a thread it would cost more than it does
    who: Principal | None = request.state.principal
    return check_role(who, ROLES[0])


Known = Annotated[Principal, Depends(_known)]
"""An argument of an endpoint: who asks. What they may do is declared on its route."""


def _sound(token: Token) -> Token:
    """A token that can be compared with what is sent.

    Raises:
        ValueError, TypeError: It was changed by somebody else.
    """
    bytes.fromhex(token.salt)
    if token.role not in ROLES or not token.sha256.isascii():
        raise ValueError(token.role)
    return token


def _hash(salt: bytes, secret: str) -> str:
    return sha256(salt + secret.encode("utf-8", "surrogatepass")).hexdigest()  # what JSON can hold is no text always


def _host_name(host: str) -> str:
    """The Host header without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
