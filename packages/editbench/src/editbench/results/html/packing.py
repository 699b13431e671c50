"""Data that travel inside a page, packed."""

import base64
import gzip
import json
from typing import Any

from markupsafe import Markup


def pack(content: Any) -> Markup:
    """Gzipped JSON in base64, for a ``<script type="application/gzip">`` element.

    None of its characters means anything to HTML: no text in `content` can end the element or
    begin another. Equal content gives equal text.
    """
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    packed = gzip.compress(text.encode("ascii"), mtime=0)
    return Markup(base64.b64encode(packed).decode("ascii"))
