"""Verification room: whether a framework's output is right, by bounds that are theorems, and if not, what it is."""

from npdwconv.cases import Case
from npdwconv.verify.check import assert_conv, check, error_bound
from npdwconv.verify.gradcheck import GradReport, gradcheck
from npdwconv.verify.report import Diagnosis, Report

__all__ = ["Case", "Diagnosis", "GradReport", "Report", "assert_conv", "check", "error_bound", "gradcheck"]
