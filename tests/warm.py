"""Commands in processes that begin with everything imported.

Python and its imports take 6 s of a processor, most commands of a test less. A server imports once and forks a process
for each command: with memory, output and an exit code of its own, to be killed like any other. What `python -m sae`
adds to that, the entry point and imports in a process's own order, is tested in `test_cli.py`.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("analysis.effects.fit", "analysis.encode", "analysis.export.html", "analysis.index.build"),
        *("analysis.label.fit", "datasets", "numba"),
        *("sae.cli", "sae.harvest", "sae.kernels.numba", "sae.run", "sae.sweep", "train.evaluate", "train.trainer"),
    ]
)
SECONDS = 600  # the most that a command may take
NOTHING: Mapping[str, str] = {}
Program = Callable[[Sequence[str]], int | None]


class Command:
    """`program(arguments)` in a process of its own; what it prints is kept."""

    def __init__(self, program: Program, *arguments: str, env: Mapping[str, str] = NOTHING) -> None:
        self._arguments, self._folder = arguments, TemporaryDirectory()
        self._streams = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._streams:
            path.touch()
        self._process = SERVER.Process(target=_run, args=(self._streams, env, program, arguments))
        self._process.start()

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._streams[1].read_text()

    @property
    def has_failed(self) -> bool:
        return self._process.exitcode not in (None, 0)

    def wait_until(self, is_time: Callable[[], bool]) -> None:
        """Until `is_time()`, or its end."""
        end = time.monotonic() + SECONDS
        while not is_time() and self._process.is_alive():
            assert time.monotonic() < end, f"{self._arguments} takes long: {self.stderr[-4000:]}"
            time.sleep(0.005)

    def kill(self) -> bool:
        """End it by SIGKILL; whether it had not ended before."""
        self._process.kill()
        self._process.join()
        self._folder.cleanup()
        return self._process.exitcode == -signal.SIGKILL

    def finish(self) -> "subprocess.CompletedProcess[str]":
        """Its exit code and output, once it has ended."""
        self._process.join(SECONDS)
        assert not self._process.is_alive(), f"{self._arguments} takes long: {self.stderr[-4000:]}"
        out, err = (path.read_text() for path in self._streams)
        self._folder.cleanup()
        return subprocess.CompletedProcess(self._arguments, self._process.exitcode or 0, out, err)


def run_sae(arguments: Sequence[str]) -> int:
    """The program of a `sae` command."""
    from sae.cli import main

    return main(arguments)


def start(*arguments: str) -> Command:
    """`sae ARGUMENTS`, begun."""
    return Command(run_sae, *arguments)


def sae(*arguments: str, env: Mapping[str, str] = NOTHING) -> "subprocess.CompletedProcess[str]":
    """`sae ARGUMENTS`, done."""
    return Command(run_sae, *arguments, env=env).finish()


def together(program: Program, *arguments: str) -> str:
    """A team of two, a thread each, with the environment that torchrun gives its processes; what the first says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [{"RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in (0, 1)]
    team = [Command(program, *arguments, env={**common, **own}) for own in ranks]
    for one in team:  # should one fail, the others would wait for it
        one.wait_until(lambda: any(other.has_failed for other in team))
    said = [one.stderr for one in team if one.has_failed]
    if said:
        for one in team:
            one.kill()
        raise AssertionError(said[0][-4000:])
    first, _ = [one.finish() for one in team]
    return first.stdout


def _run(streams: Sequence[Path], env: Mapping[str, str], program: Program, arguments: Sequence[str]) -> None:
    import torch

    for path, number in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.chdir(ROOT)
    os.environ |= env
    if "OMP_NUM_THREADS" in env:  # which torch read before
        torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.exit(program(arguments))
