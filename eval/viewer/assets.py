"""The static page: read once, assembled for a server or for a single file.

Both forms carry a content-security policy under which nothing but these files runs: no inline handler, no
``eval``, no other origin, and (``require-trusted-types-for``) no string-to-HTML conversion in any script,
these included.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

SCRIPTS = (
    "core.js",
    "highlight.js",
    "diff.js",
    "sources.js",
    "text.js",
    "list.js",
    "tree.js",
    "episode.js",
    "app.js",
)
"""In the order in which they run: each uses those before it."""

STYLES = ("style.css",)

_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src {connect}; img-src data:; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

SERVED_POLICY = _POLICY.format(script="'self'", style="'self'", connect="'self'") + "; frame-ancestors 'none'"
"""``Content-Security-Policy`` header of every response."""


@cache
def read(name: str) -> str:
    """The text of a file in ``static/``. ``name`` is always one of this module's own constants."""
    return files("eval.viewer").joinpath("static", name).read_text(encoding="utf-8")


def served_page() -> str:
    """The page that loads its scripts and data from the server."""
    head = "".join(f'<link rel="stylesheet" href="/static/{name}">' for name in STYLES)
    tail = "".join(f'<script src="/static/{name}"></script>' for name in SCRIPTS)
    return read("index.html").replace("<!--head-->", head).replace("<!--tail-->", tail)


def single_page(data: str) -> str:
    """The page with everything in it; ``data`` are inert script elements (see ``export``)."""
    style = "\n".join(read(name) for name in STYLES)
    script = "\n".join(read(name) for name in SCRIPTS)
    policy = _POLICY.format(script=_hash(script), style=_hash(style), connect="'none'")
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}"><style>{style}</style>'
    tail = f"{data}<script>{script}</script>"
    return read("index.html").replace("<!--head-->", head).replace("<!--tail-->", tail)


def _hash(source: str) -> str:
    digest = hashlib.sha256(source.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
