"""The command line: ``python -m lab run | report | compare | execute | publish | why | audit | pages``."""

from __future__ import annotations

import argparse
import ast
import sys
from typing import Any

from lab import audit, compare, experiments, pages, records, report

VARIABLES = """Environment: KADAM_WORKERS, number of processes; KADAM_CLUSTER, tcp://host:port of a Dask scheduler whose
workers do the runs instead; KADAM_DATA, folder of the data sets that are files; KADAM_CACHE=off, keep no runs;
KADAM_RECORDS=use, off or only: whether published records may, may not or must answer for runs."""


def literal(name: str, text: str) -> Any:
    """A parameter's value as Python writes it, like the parameters cell: 1e-3, 7, [1, 2], 'text'."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise pages.PageError(f"parameter {name}: {text!r} (must be a Python literal)") from None


def explain(name: str | None) -> int:
    """Say of the published records of a run whether they stand, and if not, why."""
    known = experiments.all_runs()
    if name is not None and name not in known:
        raise records.RecordError(f"run: {name!r} (must be one of {', '.join(known)})")
    old = False
    for (folder, run, reasons), count in records.standing().items():
        if name in (None, run):
            print(f"{folder}: {count} records of {run} {'are old:' if reasons else 'stand'}")
            print("".join(f"    {line}\n" for line in reasons), end="")
            old = old or bool(reasons)
    return 1 if old else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lab", description="Run the notebooks and judge their claims.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a page headlessly, unless it is up to date", epilog=VARIABLES)
    run.add_argument("page", help="a notebook's name without .ipynb")
    run.add_argument("-p", nargs=2, metavar=("NAME", "VALUE"), action="append", default=[],
                     help="another value for a parameter, as Python writes it; kept under results/custom/")  # fmt: skip
    table = commands.add_parser("report", help="write results/ from the finished pages, print the verdicts")
    table.add_argument("pages", nargs="*", help="those that must be up to date (default: all)")
    beside = commands.add_parser("compare", help="what you computed beside what is published")
    beside.add_argument("pages", nargs="*", help="default: all")
    for command in (run, table, beside):
        command.add_argument("--profile", default="standard", choices=pages.PROFILES)
    execute = commands.add_parser("execute", help="re-execute a committed notebook in place from the published records")
    execute.add_argument("page")
    publish = commands.add_parser("publish", help="compute what a published page lacks, and publish its records")
    publish.add_argument("page")
    publish.add_argument("--partial", action="store_true", help="compute nothing; publish what is finished so far")
    why = commands.add_parser("why", help="say which definition, version or data made the records of a run old")
    why.add_argument("run", nargs="?", help="its name (default: all of them)")
    check = commands.add_parser("audit", help="recompute a sample of the published records")
    check.add_argument("--budget", default="60s", help="about how long, such as 60s or 10m")
    check.add_argument("--base", help="a commit: show that its code and the present one give the same results")
    check.add_argument("--publish", action="store_true", help="publish the short runs that the audit needs")
    commands.add_parser("pages", help="list the pages")
    given = parser.parse_args()
    try:
        if given.command == "run":
            pages.run(given.page, given.profile, {name: literal(name, value) for name, value in given.p})
        elif given.command == "execute":
            pages.from_records(given.page, pages.RECORDED)
            report.write_results(pages.RECORDED)  # the page says where the two verdicts differ
            pages.execute_in_place(given.page)
        elif given.command == "publish":
            print(f"{given.page}: {pages.publish(given.page, given.partial)} records in results/records/{given.page}/")
        elif given.command == "audit" and given.publish:
            print(f"{audit.publish_short()} short runs in results/records/{audit.SHORT}/")
        elif given.command == "audit":
            budget = audit.seconds(given.budget)
            return 0 if (audit.prove(given.base, budget) if given.base else audit.audit(budget)) else 1
        elif given.command == "why":
            return explain(given.run)
        elif given.command == "compare":
            return 0 if compare.write(given.profile, given.pages) else 1
        elif given.command == "pages":
            print("\n".join(pages.names()))
        else:
            return 0 if report.report(given.profile, given.pages) else 1
    except (pages.PageError, records.RecordError, audit.AuditError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
