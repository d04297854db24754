"""When a connection to a Ray cluster counts as lost, with a clock and a network of the tests' own."""

from __future__ import annotations

import socket

import pytest

from agnosco.errors import AgnoscoError
from agnosco.runs import connection
from agnosco.runs.connection import PATIENCE, Lifeline, reach

REFUSED, SILENT = ConnectionRefusedError("refused"), TimeoutError("timed out")


class World:
    """What answers, and what time it is."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.failures: dict[str, OSError] = {}
        self.now = 0.0
        self.looks = 0
        patch.setattr(connection, "reach", self.reach)
        self.lifeline = Lifeline("head", "node", clock=lambda: self.now)

    def reach(self, address: str) -> None:
        self.looks += 1
        if address in self.failures:
            raise self.failures[address]

    def after(self, seconds: float) -> None:
        self.now += seconds
        self.lifeline.check()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize("failure", [REFUSED, SILENT])
def test_a_head_may_be_out_of_reach_for_a_while(world: World, failure: OSError) -> None:
    world.after(1000)  # nobody looked for long, and that is no failure
    world.failures["head"] = failure
    world.after(2)
    world.after(PATIENCE - 1)
    world.failures.clear()
    world.after(2)  # it is back
    world.failures["head"] = failure
    world.after(2)
    world.after(PATIENCE - 1)
    with pytest.raises(AgnoscoError, match=r"the head of the cluster \(head\) is lost") as caught:
        world.after(2)
    assert "start the cluster again" in str(caught.value.hint)
    assert not world.lifeline.node_lost  # workers can be told to stop


def test_a_node_that_is_gone_is_lost_at_once_and_one_that_is_silent_after_a_while(world: World) -> None:
    world.failures["node"] = SILENT
    world.after(2)
    world.after(PATIENCE - 1)
    assert not world.lifeline.node_lost
    world.failures["node"] = REFUSED
    with pytest.raises(AgnoscoError, match=r"the Ray node of this machine \(node\) is lost") as caught:
        world.after(1)
    assert "ray start --address head" in str(caught.value.hint)
    assert world.lifeline.node_lost


def test_a_machine_that_is_gone_with_the_head_is_said_to_be_the_head(world: World) -> None:
    world.failures |= {"node": REFUSED, "head": REFUSED}
    with pytest.raises(AgnoscoError, match="the head of the cluster"):
        world.after(2)
    assert world.lifeline.node_lost


def test_it_is_not_looked_all_the_time(world: World) -> None:
    for _ in range(100):
        world.after(0.1)
    assert 10 <= world.looks <= 22


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_reached_while_somebody_listens(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with server:
        address = f"[{host}]:{server.getsockname()[1]}" if ":" in host else f"{host}:{server.getsockname()[1]}"
        reach(address)
    with pytest.raises(ConnectionRefusedError):
        reach(address)
