"""`fewsight check`: what is wrong with this data, before hours are spent on it."""

from fewsight.apps.check.findings import Entry, Finding, find
from fewsight.apps.check.look import Checked, check, checked_json
from fewsight.apps.check.page import write_page
from fewsight.apps.check.show import show_checked

__all__ = ["Checked", "Entry", "Finding", "check", "checked_json", "find", "show_checked", "write_page"]
