"""Sphinx configuration."""

import doctest

import npdwconv

project = "npdwconv"
author = "the npdwconv developers"
copyright = f"2026, {author}"  # noqa: A001 - the name that Sphinx reads
release = npdwconv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
default_role = "code"
doctest_test_doctest_blocks = ""  # the docstrings' examples run in tests/test_docstrings.py
doctest_default_flags = doctest.DONT_ACCEPT_TRUE_FOR_1  # Sphinx would ignore what an error says
