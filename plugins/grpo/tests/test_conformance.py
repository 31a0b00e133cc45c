"""What the plugin's entries owe, as they come and with the parts of their loss that are off by default."""

from flowfactory.testing import conformance

NAME = "flowfactory-plugin-grpo"
EVERY_PART = {"grpo": {"kl_beta": 0.1, "noise_weight": 2.25}, "grpo-guard": {"kl_beta": 0.1, "kl": "v"}}

test_conformance = conformance(NAME)
test_conformance_with_every_part = conformance(NAME, keys=EVERY_PART)
