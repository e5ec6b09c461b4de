"""Faults at every file operation of a job: the process is killed before it, or it fails with an error of the system.

The job runs in a fork, whose audit hook counts what changes files below a folder: opening for writing, renaming, removing,
creating and removing folders; and each fsync. Writing into an open file is not counted.
"""

import errno
import os
import signal
import sys
import traceback

from llmctl.errors import LlmctlError

DONE, REFUSED, WRONG = 0, 2, 3
SECONDS = 60
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""Errors of the system that a job has to explain."""
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "os.link"}


def with_fault(job, folder, point, error=None):
    """Runs a job in a fork with one fault.

    Args:
        job: A function without arguments.
        folder: Where operations count.
        point: Number of the operation, from 1.
        error: ``errno`` of the operation that fails; None = SIGKILL.

    Returns:
        Whether the job got that far, and how it ended: ``-signal.SIGKILL``, ``DONE``, ``REFUSED`` with an ``LlmctlError``, or
        ``WRONG`` with another exception.
    """
    said, code = _forked(job, folder, point, error)
    return said.startswith(b"!"), code


def operations(job, folder):
    """How many operations a job has that ends well."""
    said, code = _forked(job, folder, 0, None)
    assert code == DONE
    return int(said)


def _forked(job, folder, point, error):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(_run(job, os.path.realpath(folder), point, error, write))
    os.close(write)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = os.read(read, 100)
    os.close(read)
    return said, code


def _run(job, folder, point, error, reached):
    signal.alarm(SECONDS)
    count = 0

    def tick():
        nonlocal count
        count += 1
        if count == point:
            os.write(reached, b"!")
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(error, os.strerror(error))

    def hook(event, arguments):
        opened = event == "open" and isinstance(arguments[2], int)
        writes = opened and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or event in _CHANGES:
            # Cleaning up names files relative to an open folder.
            paths = arguments[: 1 if opened else 2]
            names = [os.fsdecode(name) for name in paths if isinstance(name, str | bytes | os.PathLike)]
            if any(not os.path.isabs(name) or name.startswith(folder + "/") for name in names):
                tick()

    real = os.fsync

    def fsync(handle):
        tick()
        real(handle)

    os.fsync = fsync
    sys.addaudithook(hook)
    try:
        job()
    except LlmctlError:
        return REFUSED
    except BaseException:
        traceback.print_exc()
        return WRONG
    finally:
        os.write(reached, str(count).encode())
    return DONE
