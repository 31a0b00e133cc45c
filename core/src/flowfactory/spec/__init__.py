"""From TOML to a checked value.

A path goes in; a `tables.Spec` comes out, or every mistake at once, each at its line. It asks `discovery` for the spec
classes of the plugins that are named, and `plan` goes on from what it makes. Never torch.
"""
