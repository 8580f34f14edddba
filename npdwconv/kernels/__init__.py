"""Leaves: arrays and ints. No validation, no options, no allocation policy."""
