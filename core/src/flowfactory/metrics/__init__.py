"""What a run measures, and where the numbers go.

Scores, losses, seconds and bytes go in; named numbers come out, to a file, to trackers, to a person.
"""
