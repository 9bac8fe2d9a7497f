"""What losses are computed with; no idea of modules, queues or ranks."""
