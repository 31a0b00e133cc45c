"""What losses are written with: stored steps, noise levels, means over groups, clipped ratios.

A batch and velocities go in, numbers come out. Nothing here is of one algorithm; trainers of plugins read it.
"""
