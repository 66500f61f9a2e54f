"""`fewsight report`: an HTML page on runs, made from their stored scores, that needs no network."""

from fewsight.apps.report.galleries import Pictures
from fewsight.apps.report.gather import RunFacts, gather
from fewsight.apps.report.page import write_report

__all__ = ["Pictures", "RunFacts", "gather", "write_report"]
