"""The documentation site: ``pip install -e ".[docs]"``, then ``sphinx-build -W --keep-going docs SITE``."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "_ext")]

from m3el_fast import __version__  # noqa: E402

project = "m3el_fast"
release = version = __version__
html_title = f"m3el_fast {release}"
copyright = "the authors of m3el_fast, Apache-2.0"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    # docs/_ext/
    "command_help",
    "mathml",
    "short_entries",
    "short_names",
    "spec_sections",
]
exclude_patterns = ["_build", "_ext", "examples"]

# Every reference of a docstring must name something that the site shows.
nitpicky = True
nitpick_ignore_regex = [
    # types in signatures
    (r"py:(class|obj|data)", r"(?!m3el_fast\.).*"),
    (r"py:class", r"m3el_fast\..*"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_param = False  # entries like "query_mask [U, Le], key_mask [M, Lm]: ..." are no fields
napoleon_custom_sections = [("Attributes", "params_style")]

myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 3
copybutton_exclude = ".linenos, .gp, .go"

pygments_dark_style = "github-dark"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/icon.svg"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
