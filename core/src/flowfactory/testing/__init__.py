"""The conformance kit: from a distribution's entry points, every check its entries owe.

    from flowfactory.testing import conformance

    test_conformance = conformance("flowfactory-plugin-mine")

in a plugin's tests is one parametrised pytest test; `flowfactory plugins check flowfactory-plugin-mine` runs the same
checks from the shell, where pytest need not be installed.
"""

from __future__ import annotations

from flowfactory.testing.kit import Case, Kit, Outcome, conformance
from flowfactory.testing.subject import Broken, NotOwed, Subject

__all__ = ["Broken", "Case", "Kit", "NotOwed", "Outcome", "Subject", "conformance"]
