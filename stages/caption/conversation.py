"""What is asked of a model about one row: one call after the other, how each answer is read, and how it all can end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from cluster.chat import ChatReply
from stages.caption.answers import ReadingRule, is_whole
from stages.caption.rule import Rule


@dataclasses.dataclass(frozen=True)
class Reading:
    """What an answer says: its fields, or None where it can't be read; why it can't be used; and which rules are about
    answers of another kind than this one.
    """

    fields: Mapping[str, Any] | None
    reasons: Sequence[str] = ()
    not_applicable: frozenset[Rule] = frozenset()


@dataclasses.dataclass(frozen=True)
class Call:
    """One question about a row, and how its answer is read; it may have a ladder of temperatures of its own."""

    messages: list[dict[str, Any]]
    schema: dict[str, Any] | None
    read: Callable[[str], Reading]
    temperatures: Sequence[float] | None = None

    def judged(self, reply: ChatReply) -> Reading:
        """The reading of a reply. One that was cut off counts only as whole JSON: any other was on its way, and what
        looks like an answer may stand in a thought that was never closed.
        """
        if reply.error is not None:
            return Reading(None, [reply.error])
        if reply.finish_reason == "length" and self.schema is not None and not is_whole(reply.text):
            return Reading(None, [ReadingRule.CUT_OFF])
        return self.read(reply.text)


class Dropped(Exception):
    """Raised by a conversation that knows without an answer that its row comes to nothing, and why."""

    def __init__(self, outcome: Literal["filtered", "failed"], reason: str):
        super().__init__(reason)
        self.outcome, self.reason = outcome, reason


class Refused(Exception):
    """Raised in a conversation at a call whose last answer was no good either: `fields` has what it said, if it could
    be read. One that catches it goes on; the row of one that doesn't comes to nothing.
    """

    def __init__(self, outcome: str, reasons: Sequence[str], fields: Mapping[str, Any] | None):
        super().__init__(reasons)
        self.outcome, self.reasons, self.fields = outcome, reasons, fields


# Yields calls, gets the fields of each good answer, returns the rows that they make. A row that came to nothing where
# others didn't has its own `outcome` and `reason`.
Conversation = Generator[Call, Mapping[str, Any], Sequence[Mapping[str, Any]]]


def proceed(conversation: Conversation, came_to: Mapping[str, Any] | Refused | None) -> Call:
    """The conversation's next call, once it knows what came of the one before; None at its beginning."""
    return conversation.throw(came_to) if isinstance(came_to, Refused) else conversation.send(came_to)
