"""What the plugin's entries owe, as they come and with every part."""

from flowfactory.testing import conformance

NAME = "flowfactory-plugin-branchgrpo"
OTHERS = {"branchgrpo": {"kl_beta": 0.1, "worth": "likely"}}

test_conformance = conformance(NAME)
test_conformance_with_every_part = conformance(NAME, keys=OTHERS)
