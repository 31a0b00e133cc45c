"""What is encoded once and kept: prompts and condition images, read, encoded, and found again by content.

Rows of the data go in, tensors for the networks come out. `sampling` and `training` take them; the encoders are gone by
then.
"""
