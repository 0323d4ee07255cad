"""The documentation site: `scripts/docs` builds it, with every warning an error."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = PROJECT["name"]
release = PROJECT["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_click"]
nitpicky = False  # types of NumPy, PIL and pydantic are named in signatures; their own sites are not here to link to

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"  # tests/test_docs.py runs the notebook and compares what it shows

html_theme = "pydata_sphinx_theme"
html_title = PROJECT["name"]
html_theme_options = {"show_prev_next": True, "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_copy_source = False
html_show_sourcelink = False

default_role = "code"  # docstrings have names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"

INDENTED = re.compile(r"^ {2,}\S")
COLUMNS = re.compile(r"\S {3,}\S")


def keep_tables(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings set tables and examples off by spaces alone: whole paragraphs of such lines become literal blocks."""
    paragraphs = "\n".join(lines).split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        rows = paragraph.strip("\n").split("\n")
        if any(INDENTED.match(row) or COLUMNS.search(row) for row in rows):
            paragraphs[number] = "::\n\n" + "\n".join(f"    {row}" for row in rows)
    lines[:] = [*"\n\n".join(paragraphs).split("\n"), ""]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", keep_tables)
