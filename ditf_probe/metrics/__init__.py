"""Metrics: functions count, classes accumulate."""
