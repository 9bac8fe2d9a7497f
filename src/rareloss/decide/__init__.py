"""From scores to a decision: thresholds with intervals, and whether tomorrow's scores are still those."""
