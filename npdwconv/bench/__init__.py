"""Measuring room: published shapes, timed beside the peers that are installed, each in a process of its own."""
