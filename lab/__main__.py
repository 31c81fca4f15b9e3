"""The command line: ``python -m lab run | report | execute | pages``."""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

from lab import pages, report

VARIABLES = """Environment: KADAM_WORKERS, number of processes; KADAM_CLUSTER, tcp://host:port of a Dask scheduler whose
workers do the runs instead; KADAM_DATA, folder of the data sets that are files; KADAM_CACHE=off, keep no runs."""


def literal(name: str, text: str) -> Any:
    """A parameter's value as Python writes it, like the parameters cell: 1e-3, 7, [1, 2], 'text'."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise pages.PageError(f"parameter {name}: {text!r} (must be a Python literal)") from None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description="Run the notebooks and judge their claims.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a page headlessly, unless it is up to date", epilog=VARIABLES)
    run.add_argument("page", help="a notebook's name without .ipynb")
    run.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), action="append", default=[],
                     help="another value for a parameter, as Python writes it; kept under results/custom/")  # fmt: skip
    table = commands.add_parser("report", help="write results/ from the finished pages, print the verdicts")
    table.add_argument("pages", nargs="*", help="those that must be up to date (default: all)")
    for command in (run, table):
        command.add_argument("--profile", default="standard", choices=pages.PROFILES)
    execute = commands.add_parser("execute", help="re-execute a committed notebook in place, outputs kept")
    execute.add_argument("page")
    commands.add_parser("pages", help="list the pages")
    given = parser.parse_args()
    try:
        if given.command == "run":
            pages.run(given.page, given.profile, {name: literal(name, value) for name, value in given.p})
        elif given.command == "execute":
            pages.execute_in_place(given.page)
        elif given.command == "pages":
            print("\n".join(pages.names()))
        else:
            return 0 if report.report(given.profile, given.pages) else 1
    except pages.PageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
