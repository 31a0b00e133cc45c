"""What the plugin's entries owe, as they come, with estimates, and with turning points."""

from flowfactory.testing import conformance

NAME = "flowfactory-plugin-stepgrpo"
OTHERS = {"stepgrpo": {"looks": "estimated", "kl_beta": 0.1, "turning": {"points": "towards", "main": "whole"}}}

test_conformance = conformance(NAME)
test_conformance_with_every_part = conformance(NAME, keys=OTHERS)
