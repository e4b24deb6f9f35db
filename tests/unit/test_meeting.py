"""Workers find the interface of the address by which Ray knows their node."""

from __future__ import annotations

from largeforge_ray.train.meeting import interface_of


def test_loopback_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1") == "lo"


def test_an_address_of_another_machine_has_no_interface_here() -> None:
    assert interface_of("192.0.2.77") is None
