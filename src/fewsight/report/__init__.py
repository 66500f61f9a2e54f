"""`fewsight report`: one page on runs, from their kept scores, that opens without a network."""

from fewsight.report.gather import Facts, gather
from fewsight.report.page import write_report

__all__ = ["Facts", "gather", "write_report"]
