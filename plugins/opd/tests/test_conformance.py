"""What the plugin's entries owe."""

from flowfactory.testing import conformance

KEYS = {"opd": {"teachers": [{"from": "some/teacher"}]}}

test_conformance = conformance("flowfactory-plugin-opd", keys=KEYS)
test_conformance_of_velocities = conformance(
    "flowfactory-plugin-opd", keys={"opd": {**KEYS["opd"], "distance": "velocity", "fraction": 0.5}}
)
