"""Hosts: what is refused and what to give instead, and the name that the engine has for each."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import DeployError
from fedsight.deploy.membership import hosts
from fedsight.deploy.membership.federation import FederationFolder


@pytest.mark.parametrize(
    ("host", "why", "cure"),
    [
        ("https://fl.example.org", "is a URL", "--host fl.example.org"),
        ("https://fl.example.org:8443/a", "is a URL", "--host fl.example.org --port 8443"),
        ("https://[2001:db8::7]:8443/", "is a URL", "--host 2001:db8::7 --port 8443"),
        ("fl.example.org/fed", "is a URL", "--host fl.example.org"),
        ("https://", "is a URL", "give only the name or the address"),
        ("fl.example.org:8002", "is more than a host", "--host fl.example.org --port 8002"),
        ("[2001:db8::7]:8002", "is more than a host", "--host 2001:db8::7 --port 8002"),
        ("[2001:db8::7]", "is more than a host", "--host 2001:db8::7"),
        ("fl.example.org:http", "is more than a host", "give only the name or the address"),
        ("fe80::1%eth0", "has a zone", "the same everywhere"),
        ("fe80::1", "is valid on one network link only", "the same everywhere"),
        ("0.0.0.0", "is not the address of one machine", "at which sites reach this machine"),
        ("::", "is not the address of one machine", "at which sites reach this machine"),
        ("ff02::1", "is not the address of one machine", "at which sites reach this machine"),
        ("2001:db8::7::1", "cannot be the name or address", "use letters, digits"),
        ("10.0.0.300", "cannot be the name or address", "use letters, digits"),
        ("", "cannot be the name or address", "use letters, digits"),
        ("fl example", "cannot be the name or address", "use letters, digits"),
        ("-fl", "cannot be the name or address", "use letters, digits"),
        ("f" * 254, "cannot be the name or address", "use letters, digits"),
    ],
)
def test_what_is_not_a_host_is_refused_with_what_to_give(
    tmp_path: Path, host: str, why: str, cure: str
) -> None:
    with pytest.raises(DeployError) as caught:
        FederationFolder.create(tmp_path / "wards", host, 8002)
    assert why in caught.value.cause
    assert cure in caught.value.cure
    assert not (tmp_path / "wards").exists()


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        *((name, name) for name in ("localhost", "fl.example.org", "10.0.0.7", "a", "fl-1")),
        ("2001:db8:0:0:0:0:0:7", "2001:db8::7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("::1", "::1"),
    ],
)
def test_names_and_addresses_are_kept_in_one_form(written: str, kept: str) -> None:
    assert hosts.checked_host(written) == kept
    assert hosts.checked_host(kept) == kept


@given(st.ip_addresses(v=6))
def test_the_engines_name_of_an_address_has_no_colon_and_leads_back(
    address: ipaddress.IPv6Address,
) -> None:
    name = hosts.engine_name(address.compressed)
    assert ":" not in name
    assert len(name) <= 64  # a certificate's name
    assert name[0].isalnum()
    assert name[-1].isalnum()
    assert hosts.host_of(name) == address.compressed


@pytest.mark.parametrize("name", ["fl.example.org", "10.0.0.7", "x.ipv6-literal.net", "a-b"])
def test_other_names_are_the_engines_own(name: str) -> None:
    assert hosts.engine_name(name) == hosts.host_of(name) == name


def test_an_address_is_written_as_it_is_read() -> None:
    assert hosts.written("::1", 8002) == "[::1]:8002"
    assert hosts.written("fl.example.org", 8002) == "fl.example.org:8002"


def test_a_server_for_this_machine_alone_listens_to_it_alone() -> None:
    assert hosts.loopback_address("localhost") == "127.0.0.1"
    assert hosts.loopback_address("::1") == "::1"
    assert hosts.loopback_address("127.0.0.9") == "127.0.0.9"
    assert hosts.loopback_address("fl.example.org") is None
    assert hosts.loopback_address("2001:db8::7") is None
