"""A file of somebody else in a process of its own, with a time limit for each call.

The process has the rights of whoever started it. This keeps the grader alive; it keeps nothing from the file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np

from polyattn.parity.bench import MissingBench
from polyattn.parity.grading.calling import OPTIONS, Reply, short
from polyattn.parity.grading.frames import receive, send

__all__ = ["Apart"]

STARTING = 120.0  # seconds for the library itself: PyTorch on a cold disk takes many
START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from polyattn.parity.grading.worker import main; main()"


class Apart:
    """The function of a file; it is started when it is asked, and again where a call has ended it."""

    def __init__(self, who: str, path: Path, function: str, library: str, seconds: float) -> None:
        self.who, self.path, self.function, self.library = who, path, function, library
        self.seconds = seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.listener: Thread | None = None
        self.accepted = frozenset[str]()

    def __enter__(self) -> Apart:
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, given: Mapping[str, Any]) -> Reply:
        """One call; whatever becomes of the process is told in words."""
        if self.process is None:
            try:
                self._start()
            except (ValueError, MissingBench) as error:  # the first time it could be loaded
                self._end()
                return Reply(None, f"it ended its process, and then: {error}")
        try:
            return self._checked(self._exchange(given, self.seconds))
        except _Silent as why:
            self._end()
            return Reply(None, str(why))

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-c", START, json.dumps([str(part) for part in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        asked = {"who": self.who, "library": self.library, "path": str(self.path.resolve()), "function": self.function}  # fmt: skip
        try:
            started = self._exchange(asked, STARTING)
        except _Silent as why:
            raise MissingBench(f"{self.who}: expected {self.library} in a process of its own, got none: {why}") from None  # fmt: skip
        if (missing := started.get("missing")) is not None:
            raise MissingBench(missing)
        try:
            loaded = self._exchange(None, self.seconds)
        except _Silent as why:
            raise self._refused(f"a file of which, while it was loaded, {why}") from None
        if trouble := loaded.get("trouble"):
            raise self._refused(trouble)
        self.accepted = frozenset(OPTIONS) & set(loaded.get("accepted", ()))

    def _refused(self, got: Any) -> ValueError:
        return ValueError(
            short(f"{self.who}: expected {self.function!r} in {self.path.name!r}, got {got}", 600)
        )

    def _exchange(self, said: Mapping[str, Any] | None, seconds: float) -> dict[str, Any]:
        """What the process says next, to this or of itself; _Silent with the reason if it says nothing."""
        process = self.process
        if process is None:
            raise _Silent("its process has ended")
        there, back = (pipe for pipe in (process.stdin, process.stdout) if pipe is not None)
        heard: list[dict[str, Any]] = []
        nonsense: list[ValueError] = []

        def listen() -> None:
            with suppress(EOFError, OSError):
                try:
                    heard.append(receive(back))
                except ValueError as error:
                    nonsense.append(error)
            if self.process is not process:  # it was given up before it answered
                back.close()

        if said is not None:
            with suppress(OSError):  # it has ended: nothing will be heard
                send(there, said)
        self.listener = Thread(target=listen, daemon=True)
        self.listener.start()
        self.listener.join(seconds)
        if heard:
            return heard[0]
        if nonsense:
            raise _Silent("its process wrote what is no answer")
        if self.listener.is_alive():
            raise _Silent(f"nothing came back within {seconds:g} seconds; does it ever end?")
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        raise _Silent(f"its process ended{_how(process.returncode)}")

    def _checked(self, found: dict[str, Any]) -> Reply:
        out, trouble = found.get("out"), found.get("trouble", "")
        changed, dtype = found.get("changed", ()), found.get("dtype", "")
        if out is None and not trouble:
            trouble = "its process wrote what is no answer"
        return Reply(
            out if isinstance(out, np.ndarray) and out.dtype == np.float64 and not trouble else None,
            short(str(trouble), 600),
            tuple(short(str(name)) for name in changed) if isinstance(changed, list) else (),
            short(str(dtype)),
        )

    def _end(self) -> None:
        """Ends the process, and what it has started in its session."""
        process, self.process = self.process, None
        if process is None:
            return
        if os.name == "posix":
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()
        if self.listener is not None:
            self.listener.join(1.0)
        for pipe in (process.stdin, process.stdout):
            # Where a process that got away still holds the pipe, the listener closes it.
            if pipe is not None and not (
                pipe is process.stdout and self.listener and self.listener.is_alive()
            ):
                with suppress(OSError):  # what was not written yet has no reader
                    pipe.close()


class _Silent(Exception):
    """No answer came, and why."""


def _how(status: int | None) -> str:
    if status is None:
        return ""
    if status >= 0:
        return f" with status {status}"
    with suppress(ValueError):
        return f" by {signal.Signals(-status).name}"
    return f" by signal {-status}"
