"""Errors that a user can cause; command lines print them as one line and exit with 2."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one line that names the file, the field and the value."""
