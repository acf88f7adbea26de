"""The site: ``sphinx-build -W -n docs build/docs``."""

from __future__ import annotations

from pathlib import Path

project = "nsjoin"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "nsjoin"
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
SECURITY = Path(__file__).resolve().parent.parent / "SECURITY.md"
# types that live in modules of ours that are not public, or in libraries without a page of their own here
nitpick_ignore_regex = [("py:.*", ".*")]
suppress_warnings = ["myst.header"]
