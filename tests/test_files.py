import signal
import subprocess
import sys

import pytest

from lab import files

HOLD = """
import sys, pathlib
from lab import files
with files.locked(pathlib.Path(sys.argv[1])):
    print("has it", flush=True)
    sys.stdin.read()
"""


def holder(path):
    """Another process, which has the lock."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, cwd=files.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"has it\n"
    return process


def test_a_lock_is_waited_for_and_the_waiting_is_told_once(tmp_path):
    path, told = tmp_path / "new folder" / "lock", []
    with holder(path) as other:

        def waiting():
            told.append("waits")
            other.stdin.close()

        with files.locked(path, waiting):
            assert told == ["waits"] and other.wait() == 0
    with files.locked(path, waiting):
        assert told == ["waits"]


def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path):
    with holder(tmp_path / "lock") as other:
        with files.locked(tmp_path / "lock", lambda: other.send_signal(signal.SIGKILL)):
            pass
        assert other.wait() == -signal.SIGKILL


def test_a_lock_is_freed_when_what_it_guards_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), files.locked(tmp_path / "lock", lambda: pytest.fail("it is free")):
            raise KeyError
