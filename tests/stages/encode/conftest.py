"""Fixtures of these tests."""

from tests.tiny_flux import tiny_flux  # noqa: F401
from tests.tiny_sd3 import tiny_sd3  # noqa: F401
