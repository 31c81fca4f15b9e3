#!/bin/sh
# Write requirements.lock anew: the newest versions that pyproject.toml allows, with torch as pinned before, and with
# it triton: torch for CUDA asks for one version of it, which the build for CPUs does not tell.
set -eu
torch=$(grep '^torch==' requirements.lock)
triton=$(grep '^triton==' requirements.lock)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet "$torch"
"$folder/venv/bin/python" -m pip install --quiet "$torch" "$triton" ".[notebooks,benchmarks,dev]"
{
    grep '^#' requirements.lock
    # a local suffix such as +cpu names one build; without it everybody gets the one for their machine
    "$folder/venv/bin/python" -m pip freeze --all --exclude kadam --exclude pip | sed -e 's/+cpu$//' -e "s/^triton==.*/$triton/"
} >"$folder/lock"
mv "$folder/lock" requirements.lock
