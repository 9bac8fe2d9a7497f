"""Which native kernel computes the losses on this machine, and why.

The environment variable ``RARELOSS_NATIVE`` chooses before ``rareloss`` is imported: 0 for none, ``v2``, ``v3`` or
``v4`` for the variant of that x86-64 level. Without a kernel everything is computed by torch, to the same accuracy.
"""

from rareloss.ops import native

__all__ = ["available", "why"]

available, why = native.available, native.why
