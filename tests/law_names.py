"""The laws by the names that reports give them, and lines of reports with any number in them."""

import re


STEPS = "many tokens equal iterated steps"
SPLITS = "a sequence may be split anywhere"
PADDING = "tokens past the length leave no trace"
IDENTITY = "invalid tokens leave the cache as it was"
INVALID = "invalid steps between valid ones leave no trace"
FORM = "the cache keeps its form"
CHUNKS = "results do not depend on the chunk size"
CAUSAL = "no output depends on later inputs"
GRADIENTS = "gradients of many tokens equal those of iterated steps"
STARTS = "a start forgets"
FINITE = "everything stays finite at extreme inputs"
LOG_DECAY = "log_decay is at most 0"
ROOM = "reserve changes nothing but the room"
REFERENCE = "many tokens equal the float64 reference"
ROWS = "rows are independent"
FORWARD = "forward gives the logits of every step"

NUMBER = r"-?\d+(\.\d+)?(e[+-]\d+)?"


def matches(says: str, line: str) -> bool:
    return re.fullmatch(re.escape(says).replace(r"\#", NUMBER), line) is not None
