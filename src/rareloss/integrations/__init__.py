"""Adapters to other libraries; each names the extra that it needs."""
