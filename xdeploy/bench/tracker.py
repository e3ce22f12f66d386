"""A TVM RPC tracker (`python -m tvm.exec.rpc_tracker`): boards' servers register there by kind, it lends who is free.

Its protocol, as tvm/rpc/tracker.py of TVM 0.27 states it: a magic number each way, then messages of a length (int32,
little-endian) and JSON. What comes back is from another program: sizes, types and times are held to limits.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

_MAGIC = 0x2F271
_SUCCESS, _REQUEST, _SUMMARY = 0, 4, 6
_LIMIT = 1 << 20  # bytes of a message, the tracker's own limit
_PRIORITY = 1


class TrackerError(Exception):
    """The tracker cannot be reached, ended the connection, or says what no tracker says."""


@dataclass(frozen=True, slots=True)
class Board:
    """A lent board's server: host as the tracker knows it, port, and the word that it lets one client in for."""

    host: str
    port: int
    key: str


class Tracker:
    """A connection to a tracker at (host, port); `limit` seconds for it, and for each answer but that of `borrow`.

    Raises:
        TrackerError: nothing answers there, or no tracker does.
    """

    def __init__(self, host: str, port: int, limit: float) -> None:
        self._limit = limit
        try:
            self._socket = socket.create_connection((host, port), limit)
        except OSError as error:
            raise TrackerError(error.strerror or str(error)) from None
        try:
            self._send(struct.pack("<i", _MAGIC))
            if self._receive(4, time.monotonic() + limit) != struct.pack("<i", _MAGIC):
                raise TrackerError("something else answers")
        except TimeoutError:
            self.close()
            raise TrackerError(f"no answer within {limit:g} s") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the connection."""
        self._socket.close()

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def kinds(self) -> dict[str, tuple[int, int]]:
        """The kinds that have boards -> how many are registered, and how many of these are free."""
        try:
            told = self._ask([_SUMMARY], time.monotonic() + self._limit)
            queues = {str(k): int(v["free"]) for k, v in told["queue_info"].items()}
            keys = [str(server["key"]) for server in told["server_info"]]
        except TimeoutError:
            raise TrackerError(f"no answer within {self._limit:g} s") from None
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TrackerError("its summary cannot be understood") from None
        names = [key.removeprefix("server:") for key in keys]
        return {name: (names.count(name), queues.get(name, 0)) for name in sorted(set(names))}

    def borrow(self, kind: str, limit: float) -> Board:
        """A free board of a kind, waited for up to `limit` seconds; it is given back when its session ends.

        Raises:
            TimeoutError: none became free. TrackerError: the tracker is gone.
        """
        value = self._ask([_REQUEST, kind, "", _PRIORITY], time.monotonic() + limit)
        match value:
            case [str(host), int(port), str(key)] if 0 < port < 65536:
                return Board(host, port, key)
        raise TrackerError("it lends what is no board")

    def _ask(self, message: list[Any], end: float) -> Any:
        text = json.dumps(message).encode()
        self._send(struct.pack("<i", len(text)) + text)
        (size,) = struct.unpack("<i", self._receive(4, end))
        if not 0 < size <= _LIMIT:
            raise TrackerError(f"it announces {size} bytes")
        try:
            code, value = json.loads(self._receive(size, end))
        except (ValueError, TypeError, RecursionError):
            raise TrackerError("it says what is no answer") from None
        if code != _SUCCESS:
            raise TrackerError("it refuses")
        return value

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise TrackerError(error.strerror or str(error)) from None

    def _receive(self, count: int, end: float) -> bytes:
        """So many bytes, before the clock says `end`."""
        data = bytearray()
        while len(data) < count:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                part = self._socket.recv(min(count - len(data), 1 << 16))
            except TimeoutError:
                raise
            except OSError as error:
                raise TrackerError(error.strerror or str(error)) from None
            if not part:
                raise TrackerError("it ended the connection")
            data += part
        return bytes(data)
