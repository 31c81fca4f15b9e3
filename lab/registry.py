"""The registry of data sets, data/registry.json: where each comes from, and the checksums that it must have.

The files of a set lie in the folder that ``KADAM_DATA`` names, or else in data/, whither they are downloaded once.
A file enters data/ whole and checked, and is checked again whenever it is read. What the repository itself carries
always lies in data/.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
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
    import pooch  # it takes a while, and is rarely needed

    pooch.get_logger().setLevel("WARNING")
    entry = entries()[name]
    source, expected = entry["source"], entry["files"]
    with files.locked(folder / f".{name}.lock", lambda: _say(f"waits for the process that downloads {name}")):
        missing = [file for file in expected if not (folder / file).is_file()]
        if not missing:
            return
        _say(f"downloading the data set {name} from {source}")
        partial = folder / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        try:
            if "archive_sha256" in entry:
                members = pooch.Untar(missing, extract_dir=".")
                pooch.retrieve(source, entry["archive_sha256"], "archive", partial, processor=members)
            else:
                for file in missing:
                    pooch.retrieve(source + Path(file).name, expected[file], file, partial)
            contents = {file: (partial / file).read_bytes() for file in missing}
        except (OSError, ValueError) as error:
            wanted = ", ".join(f"{file} (SHA-256 {expected[file]})" for file in missing)
            raise DataError(
                f"data set {name!r} could not be had from {source} ({error}): put it into {folder}, or name in"
                f" KADAM_DATA the folder that holds it; missing are {wanted}"
            ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for file, content in contents.items():
            _compare(name, f"{file} from {source}", content, expected[file], "the file there changed")
        for file, content in contents.items():
            files.write(folder / file, content)


def _say(text: str) -> None:
    print(f"kadam: {text}", file=sys.stderr, flush=True)
