"""The first half of an epoch: noise to latents, latents to media, media to scores, scores to advantages.

Prompts go in, a frozen value of samples with advantages comes out. `training` learns from it.
"""
