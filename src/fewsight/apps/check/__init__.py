"""`fewsight check`: find the problems of a dataset before hours are spent on training."""

from fewsight.apps.check.findings import Entry, Finding, find_problems
from fewsight.apps.check.look import CheckResult, check, check_json
from fewsight.apps.check.page import write_page
from fewsight.apps.check.show import show_check

__all__ = [
    "CheckResult",
    "Entry",
    "Finding",
    "check",
    "check_json",
    "find_problems",
    "show_check",
    "write_page",
]
