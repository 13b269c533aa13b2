"""The laws of the framework, as functions that you call on your own classes."""

from ._check import (
    check_mixer as check_mixer,
    check_model as check_model,
    check_operator as check_operator,
    check_recurrence as check_recurrence,
)
from ._report import Finding as Finding, LawError as LawError, Report as Report
