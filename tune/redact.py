"""Credentials, kept out of everything that is printed or stored."""

from __future__ import annotations

import re


def redact(text: str) -> str:
    """`text` without the user names and passwords of the URIs in it."""
    text = re.sub(r"(\w[\w+.-]*://)[^/\s]+@", r"\1", text)
    return re.sub(r"([?&](?:password|passwd|sslpassword|token)=)[^&#\s]+", r"\1", text, flags=re.IGNORECASE)
