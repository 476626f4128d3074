"""Many rows over the same data: tables, intervals, JSON, CSV."""

from ditf_probe.comparison.ablation import ablation_pictures
from ditf_probe.comparison.measured import report_measured, summarise_measured
from ditf_probe.comparison.reports import report, report_from_predictions
from ditf_probe.comparison.summary import summarise

__all__ = [
    "ablation_pictures",
    "report",
    "report_from_predictions",
    "report_measured",
    "summarise",
    "summarise_measured",
]
