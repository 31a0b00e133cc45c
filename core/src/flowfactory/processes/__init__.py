"""How many processes there are, what they share, and how all of them stop.

Tensors and small values of one process go in, those of all come out. Nothing else knows the number of processes. Some
of them may make a team, which computes the same samples together and counts as one.
"""
