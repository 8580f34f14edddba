"""Peers' room: one file a framework, imported only in the process that runs it."""
