"""The site: ``sphinx-build -W -n docs build/docs``."""

from __future__ import annotations

project = "nsjoin"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = "nsjoin"
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
exclude_patterns = ["_build"]
#: Names in signatures that no page documents: aliases and helpers of private modules ...
PRIVATE = (
    r"TargetLike|Command|SpawnKeywords|RunKeywords|PlainKeywords|(Run)?(ByText|ByEncoding|ByErrors|ByNewlines|Bytes|Undecided)|NsType"
    r"|IdMap|T|P|P\.args|P\.kwargs|_?Holder|(_?survey\.)?Survey"
)
#: ... and the standard library, whose inventory is not fetched, so that the build needs no network
STDLIB = r"subprocess\.CompletedProcess|os\.PathLike|asyncio\.subprocess\.Process|Future"
nitpick_ignore_regex = [("py:class", PRIVATE), ("py:class", STDLIB)]
