"""The loopback interface of a machine without any network, as `unshare -n` makes one, where it begins switched off."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

_GET, _SET, _UP = 0x8913, 0x8914, 1  # Linux: SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_REQUEST = "16sh22x"  # struct ifreq: name, flags


def switch_on() -> None:
    """Switch it on if it is the only interface and is off; without the right to, tests that need it will tell."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        if [name for _, name in socket.if_nameindex()] != ["lo"]:
            return
        _, flags = struct.unpack(_REQUEST, fcntl.ioctl(any_socket, _GET, struct.pack(_REQUEST, b"lo", 0)))
        if not flags & _UP:
            fcntl.ioctl(any_socket, _SET, struct.pack(_REQUEST, b"lo", flags | _UP))
