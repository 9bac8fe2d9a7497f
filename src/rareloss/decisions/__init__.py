"""From scores to a decision: thresholds, calibration, drift, a report.

Needs the extra ``report``; calibration needs ``study``: ``pip install "rareloss[study]"``.
"""

from typing import TYPE_CHECKING

from rareloss.extras import late

if TYPE_CHECKING:
    from rareloss.decisions.calibration import FEW_POSITIVES, METHODS, Calibration, Calibrator, calibrate, quality
    from rareloss.decisions.drift import Drift, check_drift, likely_alerts
    from rareloss.decisions.intervals import clopper_pearson
    from rareloss.decisions.reporting.page import report
    from rareloss.decisions.thresholds import Band, Cut, Interval, band, find_threshold, highest_precision

__all__ = [
    "FEW_POSITIVES",
    "METHODS",
    "Band",
    "Calibration",
    "Calibrator",
    "Cut",
    "Drift",
    "Interval",
    "band",
    "calibrate",
    "check_drift",
    "clopper_pearson",
    "find_threshold",
    "highest_precision",
    "likely_alerts",
    "quality",
    "report",
]

_HOME = {
    "FEW_POSITIVES": "rareloss.decisions.calibration",
    "Band": "rareloss.decisions.thresholds",
    "Calibration": "rareloss.decisions.calibration",
    "Calibrator": "rareloss.decisions.calibration",
    "Cut": "rareloss.decisions.thresholds",
    "Drift": "rareloss.decisions.drift",
    "Interval": "rareloss.decisions.thresholds",
    "METHODS": "rareloss.decisions.calibration",
    "band": "rareloss.decisions.thresholds",
    "calibrate": "rareloss.decisions.calibration",
    "check_drift": "rareloss.decisions.drift",
    "clopper_pearson": "rareloss.decisions.intervals",
    "find_threshold": "rareloss.decisions.thresholds",
    "highest_precision": "rareloss.decisions.thresholds",
    "likely_alerts": "rareloss.decisions.drift",
    "quality": "rareloss.decisions.calibration",
    "report": "rareloss.decisions.reporting.page",
}

if not TYPE_CHECKING:  # which would take any name for one that is there
    __getattr__ = late(__name__, _HOME, "{name} needs", "report")
