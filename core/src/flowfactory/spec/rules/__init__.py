"""What must hold between the tables of a spec.

Each file has rules of one subject: `stochastic` of noise and its levels, `updates` of how weights move, `scores` of
rewards, data and evaluations, `shortcuts` of faster sampling, `offloading` of what waits in main memory, `teams` of how
processes share the work. `rule` runs them, on whatever of a spec is sound in itself.
"""
