"""Every page, computed from nothing with the parameters of `smoke`, as a reader would do it."""

import json
import os
import subprocess
import sys
from dataclasses import fields

import pytest

from lab import claims, files, pages

VERDICTS = {
    *claims.HELD,
    *claims.BROKEN,
    claims.LOOSELY,
    claims.AFTERWARDS,
    "holds",
    "fails, as it must",
    "not reproduced",
    "inconclusive",
    "too few seeds",
    "not as predicted",
    "not decidable",
    "shown, not judged",
}
PROGRAM = """
import sys
from pathlib import Path
from lab import __main__ as cli, pages
pages.RESULTS = Path(sys.argv.pop(1))  # nothing is written into the repository
sys.exit(cli.main())
"""


@pytest.mark.parametrize("page", pages.names())
def test_the_page_runs_from_nothing_and_judges_every_claim(page, tmp_path):
    environment = {
        **os.environ,
        "KADAM_RECORDS": "off",
        "KADAM_CACHE": "off",
        "KADAM_PROGRESS": "off",
        "PYTHONPATH": str(files.ROOT),  # this checkout, whichever .venv was made for
    }
    for name in ("KADAM_OUTPUT", "KADAM_CLUSTER"):
        environment.pop(name, None)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "results"), "run", page, "--profile", "smoke"]
    result = subprocess.run(command, cwd=files.ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "results" / "smoke" / "pages" / page
    judged = json.loads((folder / "claims.json").read_text())
    assert judged
    for claim in judged:
        assert set(claim) == {field.name for field in fields(claims.Claim)}
        assert claim["verdict"] in VERDICTS and isinstance(claim["measured"], float), claim["name"]
        assert claim["statement"] and claim["source"] and claim["kind"] in claims.KINDS
        if claim["kind"] in ("theorem", "parity", "control"):  # for the others the runs are too few, and too short
            assert claim["verdict"] in ("holds", "fails, as it must"), (claim["name"], claim["measured"])
    origin = json.loads((folder / "provenance.json").read_text())
    assert (
        origin["profile"] == "smoke" and origin["runs"] == len({entry["id"] for entry in pages.used_runs(folder)}) > 0
    )
    assert origin["figures"] and pages.is_current(page, "smoke", origin)
    assert not list((tmp_path / "results").glob("runs/*"))
