"""A pipeline as a velocity field: diffusers' own, driven through its `__call__`.

A checkpoint goes in; an adapter that encodes, predicts velocities and decodes comes out. Adapters of single families
extend it in plugins; `tiny` has the parts of the checkpoints that tests write, and is public.
"""
