"""The built-in sampling dynamics, one file each; their keys are in `flowfactory.builtin`.

A velocity and latents at one noise level go in, the latents at the next come out. `sampling` takes the steps, trainers
ask for log-probabilities.
"""
