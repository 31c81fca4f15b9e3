"""The registry of data sets, data/registry.json: where each comes from, and the checksums that it must have.

The files of a set lie in the folder that ``KADAM_DATA`` names, or else in data/, whither they are downloaded once.
A file enters data/ whole and checked, and is checked again whenever it is read. What the repository itself carries
always lies in data/.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import sys
import tarfile
import urllib.request
import zlib
from pathlib import Path
from typing import Any

from lab import files
from lab.files import ROOT


class DataError(RuntimeError):
    """A data set is missing or is not what the registry says."""


def entries() -> dict[str, dict[str, Any]]:
    """What the registry says, by the names of the sets."""
    return json.loads((ROOT / "data" / "registry.json").read_text())


def read(name: str, file: str) -> bytes:
    """The content of a file of the set ``name``, which has the registered SHA-256.

    Raises:
        DataError: the file is missing or another one; it names file, place and checksum.
    """
    folder = Path(os.environ.get("KADAM_DATA") or ROOT / "data")
    path, expected = folder / file, entries()[name]["files"][file]
    if not path.is_file():
        if os.environ.get("KADAM_DATA"):
            raise DataError(
                f"data set {name!r}: {file} is missing in {folder}, which KADAM_DATA names"
                f" (SHA-256 {expected}; without KADAM_DATA it is downloaded)"
            )
        _download(name, folder)
    content = path.read_bytes()
    _compare(name, path, content, expected, "replace the file, or delete it")
    return content


def carried(name: str) -> bytes:
    """The content of the one file of the set ``name``, which the repository carries; it has the registered SHA-256.

    Raises:
        DataError: the file is missing or another one; it names file, place and checksum.
    """
    entry = entries()[name]
    path = ROOT / "data" / entry["file"]
    if not path.is_file():
        raise DataError(f"data set {name!r}: {path} is missing (SHA-256 {entry['sha256']}; check it out anew)")
    content = path.read_bytes()
    _compare(name, path, content, entry["sha256"], "check it out anew")
    return content


def _compare(name: str, place: object, content: bytes, expected: str, remedy: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"data set {name!r}: {place} has SHA-256 {found}, but data/registry.json says {expected} ({remedy})"
        )


def _download(name: str, folder: Path) -> None:
    """Get the missing files of a set; processes that want the same set at once wait for the first."""
    source, expected = entries()[name]["source"], entries()[name]["files"]
    with files.locked(folder / f".{name}.lock"):
        missing = [file for file in expected if not (folder / file).is_file()]
        if not missing:
            return
        print(f"kadam: downloading the data set {name} from {source}", file=sys.stderr, flush=True)
        try:
            contents = _unpacked(source, missing) if source.endswith(".tar.gz") else _single(source, missing)
        except (OSError, http.client.HTTPException, tarfile.TarError, EOFError, KeyError, zlib.error) as error:
            wanted = ", ".join(f"{file} (SHA-256 {expected[file]})" for file in missing)
            raise DataError(
                f"data set {name!r} could not be had from {source} ({error!r}): put it into {folder}, or name in"
                f" KADAM_DATA the folder that holds it; missing are {wanted}"
            ) from None
        for file, content in contents.items():
            _compare(name, f"{file} from {source}", content, expected[file], "the file there changed")
        for file, content in contents.items():
            files.write(folder / file, content)


def _single(source: str, missing: list[str]) -> dict[str, bytes]:
    return {file: _get(source + Path(file).name) for file in missing}


def _unpacked(source: str, missing: list[str]) -> dict[str, bytes]:
    # by name and into memory: nothing else that the archive holds touches the disk
    with tarfile.open(fileobj=io.BytesIO(_get(source))) as archive:
        return {file: archive.extractfile(file).read() for file in missing}  # type: ignore[union-attr]


def _get(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as response:
        return response.read()
