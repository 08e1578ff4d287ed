"""Where the page is, and who may connect to it.

viser binds the next port where one is taken and waits for ever where a host is not this machine's; both are looked at
here first, so that an explicit wish is met or refused.
"""

import getpass
import ipaddress
import socket
from types import ModuleType
from urllib.parse import urlsplit

from nfc_splat.errors import UserError

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 8080, 100


def load_viser() -> ModuleType:
    """The `viser` module.

    Raises:
        UserError: it, or a package that it needs, is not installed.
    """
    try:
        import viser
    except ImportError as error:
        raise UserError(
            f"the viewer needs viser, which does not load ({error}): pip install 'nfc-splat[view]'"
        ) from error
    return viser


def choose_port(host: str, port: int | None) -> int:
    """A port that is free at `host` now: `port`, or by default the first from 8080 on.

    Raises:
        UserError: `host` is no address of this machine, or `port` is taken, out of range or not allowed.
    """
    if port is not None:
        if not 1 <= port <= 65535:
            raise UserError(f"the viewer's port {port}: expected 1 to 65535")
        if (why := _refused(host, port)) is not None:
            raise UserError(f"the viewer's port {port} at {host}: {why}; choose another, or leave it out")
        return port
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS):
        if _refused(host, candidate) is None:
            return candidate
    last = FIRST_PORT + PORTS - 1
    raise UserError(f"the viewer found no free port at {host} from {FIRST_PORT} to {last}; name one")


def _refused(host: str, port: int) -> str | None:
    """Why nothing can listen there, or None if it can."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host {host}: not a name or an address that is known here ({error.strerror})") from error
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind(address)
        except OSError as error:
            if address[0] not in ("127.0.0.1", "::1") and port >= 1024 and not _is_ours(family, address):
                raise UserError(f"--host {host}: not an address of this machine ({error.strerror})") from error
            return str(error.strerror)
    return None


def _is_ours(family: int, address: tuple) -> bool:
    """Whether this machine has the address, whatever the port."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address[0], 0, *address[2:]))
        except OSError:
            return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def url(host: str, port: int) -> str:
    """An address for a browser: one that can be typed, also where the server listens at every address."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def introduction(host: str, port: int) -> list[str]:
    """Lines that say how to get to the page."""
    lines = [f"viewer: {url(host, port)}"]
    if is_loopback(host):
        target = f"[{host}]" if ":" in host else host
        lines.append(
            f"        from another machine: ssh -L {port}:{target}:{port} {_user()}@{socket.gethostname()}, then "
            f"http://localhost:{port} there"
        )
    else:
        lines.append(f"        warning: --host {host} lets everybody look who reaches this machine; 127.0.0.1 does not")
    return lines


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "USER"


def may_connect(origin: str | None, asked: str | None, host: str) -> bool:
    """Whether a web page may talk to the server: one that the server itself has sent.

    Browsers let any page of the web open a WebSocket to this machine, and say whose page it is.

    Args:
        origin: header Origin; None from what is no browser.
        asked: header Host, as which the server was addressed.
        host: where the server listens.
    """
    if origin is None:
        return True
    page = urlsplit(origin)
    if page.netloc != asked:
        return False
    # A name that an attacker points to this machine would be equal in both; no such name is asked for on loopback.
    return not is_loopback(host) or is_loopback(page.hostname or "") or page.hostname == host
