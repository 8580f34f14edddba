"""Interop room: the only place that knows frameworks and their files; each module is imported by name."""
