"""Sphinx configuration; build with `python3 dev.py docs`."""

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))

project = "Gradiron"
author = "the Gradiron authors"
version = release = _PROJECT["project"]["version"]
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": _PROJECT["project"]["description"], "page_width": "70em"}
# Links to headings, as other readers of Markdown have them.
myst_heading_anchors = 4
