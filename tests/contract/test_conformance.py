"""What core's own entries owe, like everybody's."""

import pytest
from flowfactory.testing import conformance

pytestmark = pytest.mark.slow

test_conformance = conformance("flowfactory")
