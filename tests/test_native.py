"""The native kernel against plain torch on hostile pools; ``native_fuzz.py`` draws a million, and under sanitizers."""

import pytest
from tests import native_fuzz

from rareloss.ops import native

needs_kernel = pytest.mark.skipif(not native.available(), reason=native.why())


@needs_kernel
@pytest.mark.parametrize("name", native_fuzz.COMPARISONS)
def test_the_kernel_agrees_with_torch_on_hostile_pools(name: str) -> None:
    said = [f"seed {seed}: {found}" for seed in range(150) if (found := native_fuzz.disagreement(seed, name))]
    assert not said


@pytest.mark.fuzz
@needs_kernel
def test_the_kernel_is_clean_under_sanitizers() -> None:
    assert native_fuzz.under_sanitizers(["--pools", "20000"]) == 0


@needs_kernel
def test_switched_off_it_is_not_available() -> None:
    with native.switched_off():
        assert not native.available()
    assert native.available()
