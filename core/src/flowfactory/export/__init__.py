"""Weights for others: what was trained, in a form that diffusers or ComfyUI loads, compared before it counts.

The folder of a run goes in; files, a model card and the largest difference come out. Or samples of any prompts, by the
trained weights and by their base from the same noise, and what rewards say of both.
"""
