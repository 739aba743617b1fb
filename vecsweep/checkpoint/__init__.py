"""Checkpoints: a run on disk as it goes, so that nothing is lost when its process ends, and it goes on bit for bit.

A folder holds a call (`journal`), and of each part of it the last two snapshots (`snapshots`), which a `keeper` takes
at an interval, or when a signal asks for it (`signals`). How it lies on disk is in docs/checkpoints.md.
"""
