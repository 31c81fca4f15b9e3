#!/bin/sh
# Build .venv from requirements.lock; run from the repository root. Each failure is said in one sentence.
# .venv/complete is written last and holds the lock file it was built from, so a half-built .venv is made anew.
set -u
PYTHON=${PYTHON:-python3}
fail() {
    echo "kadam: $1" >&2
    exit 1
}

command -v "$PYTHON" >/dev/null 2>&1 || fail "Python is missing: no '$PYTHON' on the PATH (version 3.11 or newer is needed; PYTHON=... names another)."
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python is too old: '$PYTHON' is $("$PYTHON" -V 2>&1), and version 3.11 or newer is needed (PYTHON=... names another)."
"$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "Python's venv module is missing for '$PYTHON' (on Debian and Ubuntu: apt install python3-venv)."

echo "kadam: building .venv from requirements.lock (a few minutes, once)" >&2
rm -rf .venv
"$PYTHON" -m venv .venv || fail "The virtual environment could not be made in .venv (see the lines above)."
log=.venv/pip.log
if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 -r requirements.lock >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    if grep -qiE 'connection|resolution|resolve|unreachable|timed? ?out|proxy|no matching distribution' "$log"; then
        fail "The package index could not be reached, or lacks a pinned package: check the network, then run the same command again (log: $log)."
    fi
    fail "The pinned packages could not be installed (log: $log)."
fi
# kadam and lab themselves, as they lie here (compat: both folders, though the wheel holds kadam alone)
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation \
    --config-settings editable_mode=compat -e . >>"$log" 2>&1 ||
    fail "kadam itself could not be installed into .venv (log: $log)."
cp requirements.lock .venv/complete
