"""Drives one engine in a process of its own.

An engine loads, warms up and then prints messages, each a line of JSON behind an ``@``:

    @{"ready": true, "load": s}     once, when it can be timed; "first" (seconds of the first run) may follow
    @{"ms": t}                      for every line ``run`` on its standard input
    @{"rss_mb": m, "peak_mb": p}    for the line ``quit``, and ends

Whatever else it prints goes to its log.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any


class EngineError(Exception):
    """An engine died, hung or said what the protocol does not know."""


class EngineProcess:
    """A started engine; every failure becomes an :class:`EngineError` and leaves no process behind."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self._messages: queue.Queue[str | None] = queue.Queue()
        self._paused = False
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = log.open("w", encoding="utf-8")
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log_file,
                env=environment,
                text=True,
                # A group of its own: compilers keep worker processes, which must stop with it.
                start_new_session=True,
            )
        except OSError as error:
            self._log_file.close()
            raise EngineError(f"does not start: {error}") from error
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("@"):
                self._messages.put(line[1:])
            elif not self._log_file.closed:
                self._log_file.write(line)
        self._messages.put(None)

    def receive(self, key: str, timeout_s: float) -> dict[str, Any]:
        """The next message, which has to hold ``key``."""
        try:
            line = self._messages.get(timeout=timeout_s)
        except queue.Empty:
            raise self._failed(f"no answer within {timeout_s:g} s") from None
        if line is None:
            code = self._process.wait()
            cause = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            raise self._failed(cause + self._last_words())
        try:
            message = json.loads(line)
        except ValueError:
            raise self._failed(f"said `{line.strip()[:80]}`, which is not JSON") from None
        if not isinstance(message, dict) or key not in message:
            raise self._failed(f"said `{line.strip()[:80]}`, expected `{key}` in it")
        return message

    def _failed(self, cause: str) -> EngineError:
        self.kill()
        return EngineError(cause)

    def _last_words(self) -> str:
        self._log_file.flush()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1].strip()[:200]}" if lines else ""

    def _send(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except OSError:
            # It is gone; `receive` finds out why.
            pass

    def wait_ready(self, timeout_s: float) -> dict[str, Any]:
        """Load and warm-up."""
        return self.receive("ready", timeout_s)

    def run(self, timeout_s: float) -> float:
        """One timed run, in milliseconds by the engine's own clock."""
        self.resume()
        self._send("run")
        milliseconds = self.receive("ms", timeout_s)["ms"]
        if not isinstance(milliseconds, int | float) or not math.isfinite(milliseconds) or milliseconds <= 0:
            raise self._failed(f"says that a run took {milliseconds} ms")
        return float(milliseconds)

    def quit(self, timeout_s: float = 60) -> dict[str, Any]:
        """Ends the engine and returns what it says about its memory."""
        self.resume()
        self._send("quit")
        last = self.receive("peak_mb", timeout_s)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        self.kill()
        return last

    def pause(self) -> None:
        """Stops it with all its threads, so that spinning ones take no core from the engine on turn."""
        self._signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Lets a paused engine go on."""
        if self._paused:
            self._signal(signal.SIGCONT)
            self._paused = False

    def _signal(self, number: signal.Signals) -> None:
        try:
            # Its own group, made at the start; the leader is not reaped yet, so the id is not reused.
            if self._process.poll() is None:
                os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def kill(self) -> None:
        """Ends it at once; nothing happens if it has ended."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except OSError:
                pass
        self._log_file.close()
