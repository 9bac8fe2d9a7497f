"""From scores to a decision. Needs the extra ``study``."""
