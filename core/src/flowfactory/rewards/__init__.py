"""Asking rewards, and what becomes of an epoch when one fails.

Samples go in, one number each comes out, or a failure, which is never a number. `sampling` submits samples while more
are made, and compares what comes back.
"""
