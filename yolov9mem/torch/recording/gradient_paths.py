# SPDX-License-Identifier: MIT
"""Where gradients come back to, from the results of a recording or of some of its calls."""

from __future__ import annotations

from collections.abc import Iterable

from .ir import Recording, Ref, StockCall
from .refs import results


def reached(calls: Iterable[tuple[int, StockCall]], made: Iterable[Ref]) -> set[Ref]:
    """Of ``made``, of what these calls (by number) make and of what they read: what gets
    a gradient if ``made`` does. What is changed in place counts as made."""
    found = set(made)
    for number, call in reversed(list(calls)):
        if _leads(call, number, found):
            found.update(call.refs)
    return found


def forget_dead_ends(done: Recording) -> None:
    """Calls to which no gradient comes back keep nothing: it goes with their results."""
    sources = (ref for stage in done.stages for ref in stage.sources)
    found = reached(enumerate(done.calls), [*results(done), *sources])
    for number, call in enumerate(done.calls):
        if not _leads(call, number, found):
            call.effects = call.effects._replace(saves=frozenset(), saved_bytes=0)


def _leads(call: StockCall, number: int, reached: set[Ref]) -> bool:
    made = call.results(number)
    return not call.cuts and (bool(call.changed) or not reached.isdisjoint(made))
