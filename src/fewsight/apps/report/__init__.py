"""`fewsight report`: one page on runs, from their kept scores, that opens without a network."""

from fewsight.apps.report.gather import RunFacts, gather
from fewsight.apps.report.page import Pictures, write_report

__all__ = ["Pictures", "RunFacts", "gather", "write_report"]
