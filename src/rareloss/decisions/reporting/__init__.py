"""A report on scores: counted in one stream, drawn as one page."""
