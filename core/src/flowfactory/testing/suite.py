"""The kit as one pytest test; pytest is imported only when a test file asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flowfactory.data.rows import load_rows
from flowfactory.testing.kit import Case, Kit
from flowfactory.testing.subject import Keys, NotOwed


def conformance(
    name: str,
    *,
    keys: Mapping[str, Keys] | None = None,
    prompts: Path | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """A test function, with one case for every check that the entries of a distribution owe.

    Args:
        name: a distribution, or the public name of an entry.
        keys: by entry name, keys its table needs beyond those of its `tiny`; or a function `folder -> keys`.
        prompts: a file of prompts to try entries on, in place of the kit's own.
        expected_failures: by case id, e.g. `"trainer mine: microbatch_invariance"`, why it fails. A case that passes
            all the same fails the test.

    Raises:
        PluginError: no such distribution or entry is installed, so that nothing would be checked.
    """
    import pytest

    kit = Kit(name, keys, load_rows(prompts) if prompts else (), expected_failures)

    def marked(case: Case) -> Any:
        reason = case.fails_because
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        return pytest.param(case, id=case.id.replace(": ", "-").replace(" ", "-"), marks=marks)

    @pytest.mark.parametrize("case", [marked(case) for case in kit.cases])
    def test(case: Case) -> None:
        try:
            case.run()
        except NotOwed as reason:
            pytest.skip(str(reason))

    test.__doc__ = f"What the entries of {name} owe."
    return test
