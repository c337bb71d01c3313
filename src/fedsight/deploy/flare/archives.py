"""What a site accepts as a job: exactly the files that `server/job_definition.py` makes, signed.

The archive is measured and read in memory before anything is unpacked. FLARE itself unpacks it in
place, looks for a signature and for code afterwards, and removes it again if it refuses it. All
that time, the job can be started. And it permits everything to a certificate with the role `super`.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nvflare.lighter.tool_consts import NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE
from nvflare.lighter.utils import verify_folder_signature_and_get_signers

from fedsight.core.files import parse_json
from fedsight.core.text import printable
from fedsight.deploy.server.job_definition import (
    SERVER_CONFIG,
    SITE_CONFIG,
    server_config,
    site_config,
)

MAX_ARCHIVE, MAX_FILE = 64 << 10, 8 << 10  # bytes; a job's archive has about 6,000
FOLDER = "config/"
FILES = frozenset(
    f"{folder}{name}"
    for folder, names in (("", ()), (FOLDER, (SERVER_CONFIG, SITE_CONFIG)))
    for name in (*names, NVFLARE_SIG_FILE, NVFLARE_SUBMITTER_CRT_FILE)
)
ROLE = "lead"  # of the certificate that signs a job
_READ_ERRORS = (zipfile.BadZipFile, ValueError, OSError, KeyError, EOFError, RuntimeError)
_ARGUMENTS = {"run": str, "fingerprint": str, "number": int}


def check_archive(data: object, authority: Path, revoked: Collection[str] = ()) -> None:
    """Raise ValueError unless `data` is a job of FedSight's, signed by one operator who may start
    jobs.

    `authority`: the certificate of the federation's authority, as the site has it; `revoked`: whom
    the list of revocations names that the site holds.
    """
    if not isinstance(data, bytes) or len(data) > MAX_ARCHIVE:
        raise ValueError("a job's archive has to be bytes, and has about 6,000 of them")
    files = _read(data)
    if files[FOLDER + SITE_CONFIG] != site_config() or not _is_server_config(
        files[FOLDER + SERVER_CONFIG]
    ):
        raise ValueError(
            "the job's configuration is not the one that this version of FedSight writes"
        )
    signers = _signers(files, authority)
    if not signers or any(role != ROLE for _, role in signers):
        shown = ", ".join(printable(role, 40) for _, role in signers) or "nobody"
        raise ValueError(f"the job is signed by {shown}, not by an operator (role {ROLE})")
    # FLARE looks at each folder alone. That of the whole says only that there is a folder `config`,
    # the same in all jobs, so anybody could put another operator's in front of a job of their own.
    if len(signers) > 1:
        shown = ", ".join(printable(name, 80) for name, _ in signers)
        raise ValueError(f"the job is signed by {shown}, and has to be signed by one operator")
    if signers[0][0] in revoked:
        raise ValueError(f"the job is signed by {printable(signers[0][0], 80)}, who was revoked")


def _read(data: bytes) -> dict[str, bytes]:
    """The files of an archive by name; ValueError unless they are those of a job."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries if entry.filename != FOLDER]
            if len(entries) > len(FILES) + 1 or sorted(names) != sorted(FILES):
                unknown = sorted(set(names) - FILES)[:3]
                raise ValueError(f"its files are not those of a job: {printable(unknown, 200)}")
            if any(
                entry.file_size > MAX_FILE or entry.compress_type != zipfile.ZIP_STORED
                for entry in entries
            ):
                raise ValueError("its files are too large, or compressed")
            return {name: archive.read(name) for name in names}
    except _READ_ERRORS as error:
        raise ValueError(f"not a job's archive: {printable(error, 300)}") from None


def _is_server_config(data: bytes) -> bool:
    """Whether a configuration differs from ours in the values of arguments at most."""
    try:
        found = parse_json(data)
        arguments: dict[str, Any] = found["components"][0]["args"]
        kinds = {name: type(value) for name, value in arguments.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return False
    return kinds == _ARGUMENTS and server_config(arguments) == data


def _signers(files: dict[str, bytes], authority: Path) -> list[tuple[str, str]]:
    """Names and roles of those who signed all files; empty if a signature is missing or false."""
    with tempfile.TemporaryDirectory(prefix="fedsight-") as folder:
        (Path(folder) / FOLDER).mkdir()
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        genuine, signers = verify_folder_signature_and_get_signers(folder, str(authority))
    return sorted((name, role) for name, _, role in signers) if genuine else []
