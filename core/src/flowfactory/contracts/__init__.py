"""What a plugin implements, and the values it is handed: all that an author has to read.

A spec class of `specs` declares its keys with `key`; a hook of `hooks` says which names there are; the four contracts
`adapter`, `scheduler`, `trainer` and `reward` say what stands behind a name. Tensors go in and come out; core keeps the
loop. It lies at the ground: nothing here knows how a run is made.
"""
