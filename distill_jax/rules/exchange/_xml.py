"""XML from strangers: elements without document types and entities, within limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from xml.parsers import expat

from distill_jax.rules.language.errors import RuleError

MOST_BYTES = 64_000_000
MOST_ELEMENTS = 2_000_000
MOST_DEPTH = 200


@dataclasses.dataclass
class Element:
    """An element of XML.

    Attributes:
      tag: Its name, without a namespace.
      attributes: By name.
      line: Where it starts, from 1.
      parent: The element around it, or None.
      children: The elements in it.
      text: The text in it, outside of its children.
    """

    tag: str
    attributes: dict[str, str]
    line: int
    parent: Element | None
    children: list[Element] = dataclasses.field(default_factory=list)
    text: str = ""

    def error(self, message: str) -> RuleError:
        return RuleError(f"line {self.line}, <{self.tag}>: {message}")

    def every(self, tag: str) -> Iterator[Element]:
        """All elements of a name in it, in the order of the text."""
        stack = self.children[::-1]
        while stack:
            element = stack.pop()
            if element.tag == tag:
                yield element
            stack += element.children[::-1]

    def needed(self, name: str) -> str:
        """An attribute; a ``RuleError`` without it."""
        if name not in self.attributes:
            raise self.error(f"it has no attribute {name!r}")
        return self.attributes[name]


def read_xml(data: bytes, encoding: str | None = None) -> Element:
    """The root of a document.

    Args:
      data: The document.
      encoding: Its encoding, whatever it declares; None for what it declares.

    Raises:
      RuleError: for text that is not well-formed, declares a document type (and with it entities,
        which may grow without bound or read files), or is beyond the limits of this module.
    """
    if len(data) > MOST_BYTES:
        raise RuleError(f"XML of {len(data)} bytes, at most {MOST_BYTES} are read")
    parser = expat.ParserCreate(encoding, namespace_separator=" ")
    parser.buffer_text = True
    root: list[Element] = []
    path: list[Element] = []
    count = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        line = parser.CurrentLineNumber
        if count > MOST_ELEMENTS or len(path) >= MOST_DEPTH:
            raise RuleError(
                f"line {line}: more than {MOST_ELEMENTS} elements, or {MOST_DEPTH} within another"
            )
        named = {name.rpartition(" ")[2]: value for name, value in attributes.items()}
        found = Element(tag.rpartition(" ")[2], named, line, path[-1] if path else None)
        (path[-1].children if path else root).append(found)
        path.append(found)

    def end(tag: str) -> None:
        path.pop()

    def text(data: str) -> None:
        if path[-1].tag == "Array":  # nothing else has a text that matters
            path[-1].text += data

    def refuse(*_: object) -> None:
        line = parser.CurrentLineNumber
        raise RuleError(f"line {line}: a document type or entity is declared, and none is read")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise RuleError(
            f"line {error.lineno}, column {error.offset + 1}: not valid XML: "
            f"{expat.ErrorString(error.code)}"
        ) from None
    except (LookupError, ValueError) as error:  # an encoding that is not known
        if isinstance(error, RuleError):
            raise
        raise RuleError(f"XML that cannot be read: {error}") from None
    return root[0]
