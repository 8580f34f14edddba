"""The examples in the package's docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import npdwconv

# `compiled_…` need the compiler of a device, which the simulator is not; they have no examples
ELSEWHERE = ("__main__", "compiled_words", "compiled_memory")
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(npdwconv.__path__, "npdwconv.")
    if not module.name.endswith(ELSEWHERE)
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name):
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_every_operator_has_an_example():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in npdwconv.__all__:
        public = getattr(npdwconv, name)
        if callable(public) and not isinstance(public, type):
            assert any(test.examples for test in finder.find(public, name)), f"{name} has no example"
