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
#: What signatures name and no page describes: aliases and helpers of modules that are not public, ...
PRIVATE = r"TargetLike|Command|SpawnKeywords|RunKeywords|NsType|IdMap|T|P|P\.args|P\.kwargs|_Holder|_survey\.Survey"
#: ... and the standard library, whose own site is not asked, so that the build needs no network
STDLIB = r"subprocess\.CompletedProcess|os\.PathLike|asyncio\.subprocess\.Process|Future"
nitpick_ignore_regex = [("py:class", PRIVATE), ("py:class", STDLIB)]
