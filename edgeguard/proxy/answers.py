"""The head of an upstream's answer: strictly, or not at all.

What one client reads as the end of a line and another as a part of it would let an upstream write
an answer of its own behind the one that was asked for. So lines end in CRLF, no field is folded
(RFC 9112, 5.2 and 2.2), and the status is three digits. Pure: bytes in, `AnswerError` or nothing.
"""

import re
from typing import Final

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
# Possessive quantifiers: no input makes these expressions backtrack.
_HEAD: Final = re.compile(
    rb"HTTP/1\.[01] [1-5][0-9][0-9](?: [^\x00-\x08\x0a-\x1f\x7f]*+)?+\r\n"
    rb"(?:" + _TOKEN + rb"++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+\r\n"
)


class AnswerError(Exception):
    """The head is not one that every reader reads alike."""


def check_answer(head: bytes) -> None:
    """Checks a whole head, its empty line included. Raises AnswerError."""
    if _HEAD.fullmatch(head) is None:
        raise AnswerError("the head of the answer is malformed")


def interim(head: bytes | bytearray) -> bool:
    """Whether a head, or what there is of it, is that of an interim answer (RFC 9110, 15.2); 101 is none."""
    return head.startswith((b"HTTP/1.1 1", b"HTTP/1.0 1")) and head[9:12] != b"101"
