"""``report.md`` and ``report.html`` of a run, and what they draw."""
