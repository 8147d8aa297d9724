"""When an API process gives memory back."""

from __future__ import annotations

from api.heap import Heap


class Machine:
    """A clock, and a trim that takes some seconds of it."""

    def __init__(self, takes: float = 0.0) -> None:
        self.now = 100.0
        self.takes = takes
        self.trims: list[float] = []
        self.heap = Heap(self.trim, clock=lambda: self.now)

    def trim(self) -> None:
        self.trims.append(self.now)
        self.now += self.takes

    def pass_seconds(self, seconds: int, *, requests: range | int, connections: int = 0) -> None:
        """Looks once a second; `requests` is the total so far, or how it grows."""
        for second in range(seconds):
            self.now += 1
            self.heap.look_after(requests if isinstance(requests, int) else requests[second], connections)


def test_memory_is_given_back_once_after_a_burst() -> None:
    machine = Machine()
    machine.pass_seconds(20, requests=range(0, 2_000, 100))
    assert machine.trims == []
    machine.pass_seconds(20, requests=1_900)
    assert machine.trims == [121.0]


def test_a_process_that_has_done_nothing_is_left_alone() -> None:
    machine = Machine()
    machine.pass_seconds(60, requests=0)
    assert machine.trims == []


def test_memory_of_streams_is_given_back_when_their_clients_have_left() -> None:
    machine = Machine()
    machine.pass_seconds(20, requests=1_000, connections=1_000)
    machine.pass_seconds(20, requests=1_000, connections=3)
    machine.pass_seconds(20, requests=1_000)
    assert machine.trims == [105.0, 121.0, 141.0]


def test_it_takes_no_more_than_a_thousandth_of_the_time() -> None:
    for takes, between in ((0.001, 5), (0.0625, 62.5)):
        machine = Machine(takes)
        machine.pass_seconds(600, requests=range(600))
        assert len(machine.trims) > 5
        gaps = [later - earlier for earlier, later in zip(machine.trims, machine.trims[1:], strict=False)]
        assert min(gaps) >= between


def test_a_c_library_that_can_not_is_let_be() -> None:
    Heap(None).look_after(1, 1)
