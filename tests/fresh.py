"""Programs in processes that know nothing of chainfx and the tests: forked from one that has torch, which is quick."""

import multiprocessing
import os
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch"])


@dataclass(frozen=True)
class Ended:
    """What a program printed, and its exit status (of a signal: minus its number)."""

    status: int
    out: str
    err: str


def fresh(code, *arguments, path=(), check=True):
    """Run a program with arguments, and with folders before those in which modules are found."""
    with TemporaryDirectory() as folder:
        files = [f"{folder}/out", f"{folder}/err"]
        process = SERVER.Process(target=_run, args=(code, [str(each) for each in arguments], [*map(str, path)], files))
        process.start()
        process.join()
        ended = Ended(process.exitcode, *(Path(file).read_text() for file in files))
    assert not check or ended.status == 0, ended.err
    return ended


def _run(code, arguments, path, files):
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    warnings.resetwarnings()
    sys.argv[1:] = arguments
    sys.path[:] = [*path, str(ROOT), *(each for each in sys.path if each not in (*path, str(ROOT)))]
    try:
        exec(code, {"__name__": "__main__"})
    except Exception:
        traceback.print_exc()
        sys.exit(1)
