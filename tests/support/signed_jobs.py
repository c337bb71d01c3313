"""Jobs as an operator signs them, and as FLARE packs them; keys of an authority for tests."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa
from nvflare.lighter.utils import (
    Identity,
    generate_cert,
    generate_keys,
    serialize_cert,
    sign_folders,
)

from fedsight.deploy.server.job_definition import write_job

OPERATOR = "operator@fedsight.local"
JOB = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"
ARGUMENTS = {"run": "first", "fingerprint": "27" * 32, "number": 7}


class Authority:
    """An authority of a federation, which signs certificates with any role."""

    def __init__(self) -> None:
        self._key, public = generate_keys()
        self._name = Identity("federation")
        self._root = generate_cert(self._name, self._name, self._key, public, ca=True)

    def write(self, path: Path) -> None:
        """Write its certificate, as a site has it."""
        path.write_bytes(serialize_cert(self._root))

    def certificate(self, role: str, path: Path, name: str = OPERATOR) -> rsa.RSAPrivateKey:
        """Write a certificate with the role `role`; returns its private key."""
        private, public = generate_keys()
        identity = Identity(name, "operator", role)
        made = generate_cert(identity, self._name, self._key, public)
        path.write_bytes(serialize_cert(made))
        return private


def job(folder: Path) -> Path:
    """The part of an honest job that every machine gets, not signed; it is made in `folder`."""
    write_job(folder, "first", ["ward"], dict(ARGUMENTS))
    return folder / "app"


def signed(app: Path, authority: Authority, role: str = "lead", name: str = OPERATOR) -> bytes:
    """The archive of a job, signed by somebody with the role `role`."""
    sign(app, authority, role, name)
    return packed(app)


def sign(app: Path, authority: Authority, role: str = "lead", name: str = OPERATOR) -> None:
    """Sign all files in a folder, as FLARE does."""
    certificate = app.parent / "signer.crt"
    sign_folders(str(app), authority.certificate(role, certificate, name), str(certificate))


def packed(app: Path, compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive of a folder."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for path in sorted(app.rglob("*")):
            archive.write(path, str(path.relative_to(app)))
    return out.getvalue()
