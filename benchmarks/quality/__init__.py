"""Which loss pays, and when: a registered grid of comparisons; ``PROTOCOL.md`` is the plan it follows."""
