"""Credentials, kept out of everything that is printed or stored."""

from __future__ import annotations

import re


def has_password(uri: str) -> bool:
    """Whether a URI has one; a user's name alone is none."""
    return bool(re.search(r"://[^/\s]*:[^/\s]*@|[?&](?:password|passwd|sslpassword|token)=.", uri, flags=re.IGNORECASE))


def redact(text: str) -> str:
    """`text` without the user names and passwords of the URIs in it."""
    text = re.sub(r"(\w[\w+.-]*://)[^/\s]+@", r"\1", text)
    return re.sub(r"([?&](?:password|passwd|sslpassword|token)=)[^&#\s]+", r"\1", text, flags=re.IGNORECASE)
