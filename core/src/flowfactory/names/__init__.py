"""What a word that somebody typed may mean: another program's name for a thing, or one that a plugin brings.

A word goes in, what it is called here and how to install it come out: two tables that any release may add to. It lies
under `discovery`, which says it of plugins, and `spec`, which says it of tables and keys. Never torch.
"""
