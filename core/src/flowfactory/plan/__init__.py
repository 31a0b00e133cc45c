"""What will run and what it needs, known before anything is loaded.

A checked spec and the number of processes go in; every number that follows, its reason, a digest and an estimate of
memory come out. `training` runs what is planned here. Never torch.
"""
