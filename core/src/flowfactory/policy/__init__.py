"""What is trained: the weights of the networks, their named sets, and the velocity under one of them.

An adapter goes in; the policy that samplers and trainers see comes out. It lies on `processes`, since weights may be
divided among them.
"""
