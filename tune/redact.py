"""Credentials, kept out of everything that is printed or stored."""

from __future__ import annotations

import re

# A password may have anything in it but @, as SQLAlchemy reads it; but a port and a path with an @ are none.
_USER = re.compile(r"(\w[\w+.-]*://)(?:[^/@:\n]*:(?!\s|\d+(?:[/?#:;,\s]|$))[^@\n]*@(?:[^/\s]*@)?|[^/\s]+@)")
# In the URL of a database server, all before an @ is one.
_DATABASE_USER = re.compile(r"((?:postgres|mysql|mariadb|mssql)\w*(?:\+\w+)?://)[^/@:\s]*:[^@\s]*@", flags=re.IGNORECASE)
_QUERY = re.compile(r"([?&](?:\w*password|passwd|\w*token|\w*secret_key|\w*access_key)=)[^&#\s]+", flags=re.IGNORECASE)


def redact(text: str) -> str:
    """`text` without the user names and passwords of the URIs in it."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", _DATABASE_USER.sub(r"\1", text)))
