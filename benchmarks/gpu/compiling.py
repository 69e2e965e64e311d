# SPDX-License-Identifier: MIT
"""torch.compile's first time, which takes minutes, most of them on the CPU: while our
package is built and tested, so that what is timed finds the code in a cache.

The cache lies where the machine is worked on. As long as a row of torch.compile lacks, it
also travels with the record.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.gpu import archives, table
from benchmarks.gpu.names import COMPILED_WAYS
from benchmarks.gpu.session import FINAL, Session, Task, asking

KEY = "torch.compile's first time"
# It took more than five minutes on a lent machine, and one that is ended begins again with
# what is done by then: the network's trace, and backward if that was not done.
LIMIT_S, NEED_S = 420.0, 60.0
# Of a call in which it goes on are for what is timed, which waits for this. A call that
# has not the time for both is for this one: what is timed needs it.
TIMED_S = 240.0
ARCHIVE = "compiled.tar.xz"
MOST_BYTES = 15 << 20  # of a file that a lent machine sends back


def tasks(session: Session) -> list[Task]:
    """One, or none in a rehearsal."""
    if session.quick:
        return []
    left = session.left()
    goes_on = "seconds" in session.record["tasks"].get(KEY, {})
    kept = TIMED_S if goes_on and left >= TIMED_S + 2 * NEED_S else 0.0
    limit = max(2 * NEED_S, min(LIMIT_S, left - kept))
    request = table.first_time()
    return [asking(KEY, limit, NEED_S, "first_time", False, niceness=0, **request)]


def compiles(task: Task) -> bool:
    """Whether a task is a row of torch.compile."""
    return (task.request or {}).get("way") in COMPILED_WAYS


def is_made(session: Session) -> bool:
    """Whether the first time came to its end."""
    return session.result(KEY) is not None


def is_wanted(session: Session) -> bool:
    """Whether a row of torch.compile has no result yet."""
    found = session.record["tasks"]
    return any(
        found.get(table.key(request), {}).get("outcome") not in FINAL
        for request in table.configurations(session.quick)
        if request["way"] in COMPILED_WAYS
    )


def fetch(session: Session) -> None:
    """The cache of an earlier call, unless this machine has one. An empty folder is none:
    a process that imports PyTorch makes it."""
    archive = session.out / ARCHIVE
    there = any(path.is_file() for path in session.compiled.rglob("*"))
    if archive.exists() and not there:
        archives.unpack(archive, session.compiled)


def leave(session: Session) -> Path | None:
    """The cache for the next call, if that needs it and it is small enough."""
    archive = session.out / ARCHIVE
    if not is_wanted(session) or not session.compiled.exists():
        archive.unlink(missing_ok=True)
        return None
    if archives.pack(session.compiled, archive, MOST_BYTES):
        return archive
    print(f"{session.compiled} is too large to travel: it is made again", flush=True)
    return None
