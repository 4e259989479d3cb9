"""Figures and limits → verdicts with sentences. Pure."""

from engineworks.gates.gates import METRIC_LIMITS, Check, Verdict, Word, disturbed_budgets, judge, with_checks, worst

__all__ = ["Check", "METRIC_LIMITS", "Verdict", "Word", "disturbed_budgets", "judge", "with_checks", "worst"]
