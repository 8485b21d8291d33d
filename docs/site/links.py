"""What the pages need to become a site: links that leave docs/, and sources of configurations unfolded."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Links to notebooks become pages of the site, those to other files pages of the repository, or mere text."""
    if "/" in page.file.src_uri:  # a page below docs/ may mean one beside it
        return markdown

    def inside(match: re.Match[str]) -> str:
        text, path = match.groups()
        if path.startswith("experiments/notebooks/"):
            return f"[{text}]({path.removeprefix('experiments/')})"
        return f"[{text}]({config.repo_url}/blob/main/{path})" if config.repo_url else text

    return _OUTSIDE.sub(inside, markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:
    """Sources are shown where they are the documentation: the fields of configurations with their comments."""
    return html.replace('<details class="mkdocstrings-source">', '<details class="mkdocstrings-source" open>')
