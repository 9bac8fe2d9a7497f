"""Fused passes and the engines of the soft count; no idea of losses."""
