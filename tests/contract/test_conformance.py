"""What core's own entries owe, like everybody's."""

from flowfactory.testing import conformance

test_conformance = conformance("flowfactory")
