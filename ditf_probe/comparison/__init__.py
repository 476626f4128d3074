"""Many rows over the same pairs: tables, intervals, JSON, CSV."""

from ditf_probe.comparison.reports import report, report_from_predictions
from ditf_probe.comparison.summary import summarise

__all__ = ["report", "report_from_predictions", "summarise"]
