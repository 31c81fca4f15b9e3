#!/bin/sh
# Write requirements.lock anew: the newest versions that pyproject.toml allows, with torch as pinned before.
set -eu
torch=$(grep '^torch==' requirements.lock)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet "$torch"
"$folder/venv/bin/python" -m pip install --quiet "$torch" ".[notebooks,dev]"
{
    grep '^#' requirements.lock
    # a local suffix such as +cpu names one build; without it everybody gets the one for their machine
    "$folder/venv/bin/python" -m pip freeze --all --exclude kadam --exclude pip | sed 's/+cpu$//'
} >"$folder/lock"
mv "$folder/lock" requirements.lock
