"""What the plugin's entries owe."""

from flowfactory.testing import conformance

test_conformance = conformance("flowfactory-plugin-dmd")
test_conformance_of_other_losses = conformance(
    "flowfactory-plugin-dmd", keys={"dmd": {"fake_loss": "velocity", "fake_steps": 2}, "tdm": {"huber": 0}}
)
