"""Fixtures of these tests."""

from tests.tiny_flux import tiny_flux  # noqa: F401
