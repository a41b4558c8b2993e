"""Lines between marks of a page, written by scripts: ``<!-- NAME: ... -->`` to its end."""

import re


def replace_between(page: str, mark: str, lines: list[str]) -> str:
    """Return a page with these lines between the marks of this name.

    Raises:
        ValueError: If the page does not have the marks, or has them twice.
    """
    between = re.compile(
        rf"(<!-- {re.escape(mark)}: generated[^\n]*-->\n).*?(<!-- end of {re.escape(mark)} -->)",
        re.DOTALL,
    )
    made = "\n".join(lines)
    page, count = between.subn(lambda marks: f"{marks[1]}\n{made}\n\n{marks[2]}", page)
    if count != 1:
        raise ValueError(f"{count} places in the page have the marks of {mark!r}, expected one")
    return page
