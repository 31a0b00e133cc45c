"""What the names of a spec stand for, resolved once, and calling it so that it decides nothing but its answer.

Names of a spec go in; a frozen value of classes comes out, with the events that observers are told, and it travels
instead of names. Whatever is called of other people's code is called by way of here. Never torch.
"""
