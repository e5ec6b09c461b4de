"""The data doctor: ``sft`` checks examples and ``preference`` pairs as the model sees them, and fills a ``report``."""

from llmctl.data.doctor.report import DoctorReport, Finding, Lines, read_lines

__all__ = ["DoctorReport", "Finding", "Lines", "read_lines"]
