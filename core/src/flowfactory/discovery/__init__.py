"""Which plugins there are: found by their metadata, loaded when a spec names them, judged before they are used.

A name of one kind goes in, a contribution (its spec class and its target) comes out, or an error that says who is at
fault. It lies between `contracts`, to which it holds every plugin, and `spec`, which asks it for names. Never torch.
"""
