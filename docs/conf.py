"""Sphinx configuration."""

import ast
import doctest
import runpy
import sys
from pathlib import Path

import npdwconv
from npdwconv.interop.conventions import CONVENTIONS, spelled

project = "npdwconv"
author = "the npdwconv developers"
copyright = f"2026, {author}"  # noqa: A001 - the name that Sphinx reads
release = npdwconv.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon"]
html_theme = "furo"
exclude_patterns = ["_build", "_*.md"]  # parts of other pages
myst_enable_extensions = ["dollarmath", "colon_fence", "substitution"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
default_role = "code"
doctest_test_doctest_blocks = ""  # the docstrings' examples run in tests/test_docstrings.py
doctest_global_setup = """
from importlib.util import find_spec


def installed(name):
    return find_spec(name) is not None
"""
doctest_default_flags = doctest.DONT_ACCEPT_TRUE_FOR_1  # Sphinx would ignore what an error says

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(Path(__file__).parent / "examples"))


def floors():
    """The table of floors that the architecture test enforces."""
    (found,) = (
        ast.literal_eval(node.value)
        for node in ast.parse((TESTS / "test_architecture.py").read_text()).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS"
    )
    return [f"| {floor} | {' · '.join(f'`{room}`' for room in rooms)} |" for floor, rooms in enumerate(found)]


def mutations():
    sys.path.insert(0, str(TESTS))  # for the lists that it puts together
    found = runpy.run_path(str(TESTS / "mutations.py"))["MUTATIONS"]
    return [f"| {mutation.what} | `{mutation.file}` |" for mutation in found]


def frameworks():
    """The table of weights that the conversions follow."""

    def row(names):
        axes = (names.depthwise, names.pointwise, names.transposed)
        depthwise, pointwise, transposed = (f"`{spelled(each)}`" if each else "has none" for each in axes)
        transposed += ", taps reversed" if names.flips_transposed else ""
        layouts, ranks = ", ".join(names.layouts), ", ".join(map(str, names.ranks))
        links = " ".join(f"[{number}]({url})" for number, url in enumerate(names.sources, 1))
        return "| " + " | ".join((names.framework, depthwise, pointwise, transposed, layouts, ranks, links)) + " |"

    return [row(names) for names in CONVENTIONS.values()]


WEIGHTS = "| framework | depthwise | pointwise | transposed depthwise | layout of images | dimensions | sources |"

myst_substitutions = {
    "frameworks": "\n".join((WEIGHTS, "|---|---|---|---|---|---|---|", *frameworks())),
    "floors": "\n".join(("| floor | rooms |", "|---|---|", *floors())),
    "mutations": "\n".join(("| mistake | in |", "|---|---|", *mutations())),
}
