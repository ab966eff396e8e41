"""Access control: only the page itself may send requests. Unknown host names and other sites' requests are refused.

Otherwise another site that a visitor has open could send images here, or reach a page that is served only to this
machine through a host name that resolves to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    address = as_address(host)
    return host == "localhost" if address is None else address.is_loopback


def as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


@dataclass
class Names:
    """The host names under which the page may be requested.

    host    the address that it listens on; an unspecified one (0.0.0.0, ::) accepts every numeric address
    more    further names, such as a proxy's
    shared  the host of Gradio's public address, once it is known
    """

    host: str
    more: Iterable[str] = ()
    shared: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.own = {*LOOPBACK, self.host.lower(), *(name.lower() for name in self.more)}
        if not is_loopback(self.host):
            name = socket.gethostname().lower()
            self.own |= {name, f"{name}.local"}

    def refusal(self, hosts: list[str], origins: list[str]) -> str:
        """The reason to refuse a request with these Host and Origin headers; "" to accept it."""
        if len(hosts) != 1 or not self.knows(host := hostname(f"//{hosts[0]}")):
            return "this page is not served under that name"
        if all(f"//{hosts[0].lower()}" == origin.lower().partition(":")[2] for origin in origins):
            return ""
        fits = self.shared and {host, *(hostname(origin) for origin in origins)} <= {*self.shared, *self.own}
        return "" if fits else "the request was sent by another site's page"

    def knows(self, name: str) -> bool:
        if name in self.own or name in self.shared:
            return True
        listens, asked = as_address(self.host), as_address(name)
        return listens is not None and listens.is_unspecified and asked is not None


def hostname(url: str) -> str:
    """The host of a URL in lower case; "" if there is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


class SameSite:
    """ASGI middleware that answers with status 403 if `Names` refuses the request."""

    def __init__(self, app: Any, names: Names) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        given = {
            wanted: [value.decode("latin-1") for name, value in scope["headers"] if name == wanted]
            for wanted in (b"host", b"origin")
        }
        reason = self.names.refusal(given[b"host"], given[b"origin"])
        if not reason:
            return await self.app(scope, receive, send)
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008, "reason": reason})
        head = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 403, "headers": head})
        await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
