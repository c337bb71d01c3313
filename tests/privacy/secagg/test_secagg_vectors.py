"""The published vectors of the primitives, through the functions that the protocol uses."""

from __future__ import annotations

import numpy as np
import pytest

from fedsight.privacy.secagg.keys import (
    Identity,
    KeyPair,
    derive,
    seal,
    signed,
    unseal,
)
from fedsight.privacy.secagg.masks import apply


def test_x25519_of_rfc_7748_section_6_1() -> None:
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    shared = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert KeyPair(alice).public.hex() == (
        "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    )
    assert KeyPair(bob).public.hex() == (
        "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    )
    assert KeyPair(alice).agree(KeyPair(bob).public) == shared
    assert KeyPair(bob).agree(KeyPair(alice).public) == shared


def test_x25519_refuses_a_point_that_gives_the_secret_away() -> None:
    with pytest.raises(ValueError, match=r".*"):
        KeyPair(bytes(range(32))).agree(bytes(32))


@pytest.mark.parametrize(
    ("secret", "salt", "info", "length", "okm"),
    [
        (
            "0b" * 22,
            "000102030405060708090a0b0c",
            "f0f1f2f3f4f5f6f7f8f9",
            42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)).hex(),
            bytes(range(0x60, 0xB0)).hex(),
            bytes(range(0xB0, 0x100)).hex(),
            82,
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
            "59045a99cac7827271cb41c65e590e09da3275600c2f09b8367793a9aca3db71"
            "cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            "0b" * 22,
            "",
            "",
            42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_hkdf_of_rfc_5869_appendix_a(
    secret: str, salt: str, info: str, length: int, okm: str
) -> None:
    values = [bytes.fromhex(text) for text in (secret, salt, info)]
    assert derive(*values, length).hex() == okm


@pytest.mark.parametrize(
    ("private", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_ed25519_of_rfc_8032_section_7_1(
    private: str, public: str, message: str, signature: str
) -> None:
    identity, said = Identity(bytes.fromhex(private)), bytes.fromhex(message)
    assert identity.public.hex() == public
    assert identity.sign(said).hex() == signature
    assert signed(identity.public, bytes.fromhex(signature), said)
    assert not signed(identity.public, bytes.fromhex(signature), said + b"x")


def test_masks_are_aes_256_ctr_of_nist_sp_800_38a_f_5_5() -> None:
    key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = (
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    words = np.zeros(16, np.uint32)
    apply(words, [(key, False)], counter)
    stream = words.astype("<u4").tobytes()
    assert bytes(a ^ b for a, b in zip(stream, plain, strict=True)).hex() == cipher


def test_sealed_is_opened_with_its_key_and_context_only() -> None:
    key, sealed = bytes(32), seal(bytes(32), b"shares", b"context")
    assert unseal(key, sealed, b"context") == b"shares"
    assert unseal(key, sealed, b"another") is None
    assert unseal(bytes(31) + b"\1", sealed, b"context") is None
    for place in range(len(sealed)):
        altered = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        assert unseal(key, altered, b"context") is None
    assert unseal(key, b"", b"context") is None
    assert seal(key, b"shares", b"context") != sealed
