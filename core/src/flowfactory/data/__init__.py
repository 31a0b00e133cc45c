"""From people's files to text and rows, as their programs write them.

Paths go in; text or `Row`s come out, or a message that names the file and the line. `spec` reads its TOML through it
and has the table `[data]` from it, `check` looks at the rows before a run does, and `training` encodes and samples
them. Never torch.
"""
