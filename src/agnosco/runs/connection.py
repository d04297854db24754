"""Joins a Ray cluster, and notices that it is lost before Ray ends this process for it, in its own words."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import AgnoscoError
from ..text import first_line

CONNECT_TIMEOUT, PROBE_TIMEOUT = 10.0, 2.0
"""Seconds that the head of a cluster has to answer when it is joined, and afterwards."""

INTERVAL, PATIENCE = 1.0, 25.0
"""Seconds between two looks, and for which the cluster may be out of reach. After 60, Ray ends the process."""


class Lifeline:
    """A connection to a Ray cluster, which may be lost.

    Args:
        head: ``host:port`` of the process that directs the cluster; without it nothing new can be begun.
        node: That of the Ray node of this machine, through which this process speaks to the cluster.
        clock: Seconds that only grow.
    """

    def __init__(self, head: str, node: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.head, self.node, self.clock = head, node, clock
        self.node_lost = False
        self._looked = clock()
        self._failing_since: float | None = None

    def check(self) -> None:
        """Look, if the last look was a while ago. AgnoscoError if the connection is lost."""
        if self.clock() - self._looked >= INTERVAL:
            self.look()

    def look(self) -> None:
        """Look at once. AgnoscoError if nothing listens at the node, or something was out of reach for long."""
        self._looked = self.clock()
        node, head = _failure(self.node), _failure(self.head)
        if node is None and head is None:
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = self._looked
        self.node_lost = isinstance(node, ConnectionRefusedError)  # it will not come back by itself
        if not self.node_lost and self._looked - self._failing_since < PATIENCE:
            return
        if head is not None:
            raise AgnoscoError(
                f"the head of the cluster ({self.head}) is lost: {first_line(head)}",
                "start the cluster again, or leave --cluster out; the same command continues from here",
            ) from head
        assert node is not None
        raise AgnoscoError(
            f"the Ray node of this machine ({self.node}) is lost: {first_line(node)}",
            f"start it again (`ray start --address {self.head}`), or leave --cluster out; "
            "the same command continues from here",
        ) from node


def connected(ray: Any, address: str) -> Lifeline:
    """Join a cluster; the process keeps its own handling of SIGTERM, which Ray replaces.

    Args:
        ray: The package.
        address: ``"auto"`` for the cluster that this machine belongs to, or ``host:port`` of its head, which may follow
            ``ray://``.

    Raises:
        AgnoscoError: There is no cluster.
    """
    server = address.removeprefix("ray://")
    with _own_signals():
        try:
            if _is_address(server):  # where nothing answers is refused at once; Ray takes minutes
                reach(server, CONNECT_TIMEOUT)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise AgnoscoError(
                f"no Ray cluster at {address!r}: {first_line(error)}",
                "start one (`ray start --head --disable-usage-stats`), or leave --cluster out",
            ) from error
    if server != address:  # this machine has no node
        return Lifeline(server, server)
    context = ray.get_runtime_context()
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return Lifeline(context.gcs_address, f"{here['NodeManagerAddress']}:{here['NodeManagerPort']}")


def reach(address: str, timeout: float = PROBE_TIMEOUT) -> None:
    """OSError if nothing answers at ``host:port`` in time."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()


def _failure(address: str) -> OSError | None:
    try:
        reach(address)
    except OSError as error:
        return error
    return None


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isdecimal()


@contextmanager
def _own_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
