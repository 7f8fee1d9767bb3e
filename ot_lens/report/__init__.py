"""One self-contained HTML page about a run: findings, figures, numbers, methods, manifest."""

from ot_lens.report.page import write_report

__all__ = ["write_report"]
