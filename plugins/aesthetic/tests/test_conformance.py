"""What the plugin's entries owe."""

from flowfactory.testing import conformance

test_conformance = conformance("flowfactory-plugin-aesthetic")
