"""JUnit XML, in the form that Jenkins, GitLab and GitHub's actions read: one suite per target, one testcase per gate.

There are no times, hosts or dates in it, so the same result gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as Xml

from xdeploy.gate.cases import Case
from xdeploy.gate.text import line


def render(cases: Sequence[Case]) -> str:
    """The whole file. A gate that is not judged is `skipped`; names and messages are printable lines."""
    root = Xml.Element("testsuites", {"name": "xdeploy check", **_counts(cases)})
    for suite in dict.fromkeys(c.suite for c in cases):
        mine = [c for c in cases if c.suite == suite]
        parent = Xml.SubElement(root, "testsuite", {"name": line(suite), **_counts(mine)})
        for case in mine:
            _case(parent, case)
    Xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + Xml.tostring(root, encoding="unicode") + "\n"


def _counts(cases: Iterable[Case]) -> dict[str, str]:
    states = [c.status for c in cases]
    numbers = (len(states), states.count("failed"), 0, states.count("noted"))
    return {k: str(n) for k, n in zip(("tests", "failures", "errors", "skipped"), numbers, strict=True)}


def _case(parent: Xml.Element, case: Case) -> None:
    text = line(case.text, 2000)
    element = Xml.SubElement(
        parent, "testcase", {"name": line(case.name), "classname": f"xdeploy.check.{line(case.suite)}"}
    )
    if case.status == "failed":
        Xml.SubElement(element, "failure", {"message": text, "type": case.rule}).text = _details(case)
    elif case.status == "noted":
        Xml.SubElement(element, "skipped", {"message": text})
    else:
        Xml.SubElement(element, "system-out").text = _details(case)


def _details(case: Case) -> str:
    lines = [line(case.text, 2000)]
    lines += [f"note: {line(case.warning, 2000)}"] if case.warning else []
    lines += [f"{key}: {line(str(value), 2000)}" for key, value in case.extra.items()]
    return "\n".join(lines)
