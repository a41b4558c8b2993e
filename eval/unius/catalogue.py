"""The cards in words: a list, one set, and the tables of the documentation."""

from collections.abc import Iterable
from typing import Any

from echostill.eval.unius.cards import FACT_LABELS, Card, CardTask, organs_of


def describe_cards(cards: Iterable[Card]) -> str:
    """Format cards as a table with a line of totals."""
    cards = list(cards)
    head = ("name", "images", "organ", "tasks", "licence", "source")
    lines = [head, *(_line(card) for card in cards)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    shown = [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]
        )
        for line in lines
    ]
    return "\n".join([*shown, totals(cards)])


def totals(cards: Iterable[Card]) -> str:
    """Count sets, tasks of the benchmark and organs in a sentence."""
    cards = list(cards)
    kinds = [task.kind for card in cards for task in card.tasks if task.benchmark]
    return (
        f"{len(cards)} sets; {kinds.count('classification')} classification and "
        f"{kinds.count('segmentation')} segmentation tasks; {len(organs_of(cards))} organs"
    )


def describe_card(card: Card) -> str:
    """Format one card, with the label of each statement."""
    fields = [
        ("name", card.name),
        ("title", card.title),
        ("images", "" if card.published is None else f"{card.published} as published"),
        ("organs", ", ".join(card.organs)),
        *(("task", _task(task)) for task in card.tasks),
        ("citation", card.citation),
        ("licence", f"{card.licence.name}; {card.licence.allows} [{card.licence.label}]"),
        ("source", card.page),
        ("expected", _expected(card)),
        ("groups", f"{card.groups.text} [{card.groups.label}]"),
        ("split", f"{card.official_split.text} [{card.official_split.label}]"),
        *(("fact", f"{fact.text} [{fact.label}]") for fact in card.facts),
        *(("layout", f"{layout.example} ({layout.name})") for layout in card.layouts),
        *(
            ("erratum", f"{', '.join(erratum.keys)}: {erratum.why}")
            for layout in card.layouts
            for erratum in layout.errata
        ),
    ]
    lines = [f"{name:<10}{' '.join(text.split())}" for name, text in fields if text]
    labels = "; ".join(f"[{label}] {meaning}" for label, meaning in FACT_LABELS.items())
    return "\n".join([*lines, labels])


def card_as_dict(card: Card) -> dict[str, Any]:
    """Return a card as plain values."""
    values: dict[str, Any] = card.model_dump(mode="json")
    return values


def overview_table(cards: Iterable[Card]) -> list[str]:
    """Return the table of all sets for the documentation, as lines of Markdown."""
    lines = [
        "| Set | Images | Organ | Task | Classes | Licence | Source |",
        "|---|---|---|---|---|---|---|",
    ]
    for card in cards:
        for task in card.tasks:
            if task.benchmark:
                cells = [
                    f"[{card.name}](#{card.name})",
                    f"{card.published:,}" if card.published else "",
                    ", ".join(card.organs),
                    f"{task.kind} [{task.label}]",
                    ", ".join(task.names),
                    f"{card.licence.name} [{card.licence.label}]",
                    card.page,
                ]
                lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return lines


def card_section(card: Card) -> list[str]:
    """Return a set's section of the documentation, as lines of Markdown."""
    lines = [f"### {card.name}", "", f"{card.title}. {card.citation}.", ""]
    for layout in card.layouts:
        lines.append(f"- Layout ({layout.name}): `{layout.example}`")
    lines += [f"- Task: {_task(task)}" for task in card.tasks]
    expected = _expected(card)
    lines += [f"- Expected: {expected}"] if expected else []
    lines.append(f"- Licence: {card.licence.name}; {card.licence.allows} [{card.licence.label}]")
    lines.append(f"- Groups: {card.groups.text} [{card.groups.label}]")
    lines.append(f"- Official split: {card.official_split.text} [{card.official_split.label}]")
    lines += [f"- {fact.text} [{fact.label}]" for fact in card.facts]
    lines += [
        f"- Erratum ({', '.join(f'`{key}`' for key in erratum.keys)}): {erratum.why}"
        for layout in card.layouts
        for erratum in layout.errata
    ]
    return [" ".join(line.split()) if line else "" for line in lines]


def _line(card: Card) -> tuple[str, ...]:
    tasks = [f"{task.kind} ({len(task.names)})" for task in card.tasks if task.benchmark]
    images = f"{card.published}" if card.published else ""
    return (
        card.name,
        images,
        ", ".join(card.organs),
        ", ".join(tasks),
        card.licence.name,
        card.page,
    )


def _task(task: CardTask) -> str:
    names = ", ".join(task.names)
    beside = "" if task.benchmark else ", beside the benchmark"
    reason = f". {task.reason}" if task.reason else ""
    return f"{task.kind}{beside} ({names}) [{task.label}]{reason}"


def _expected(card: Card) -> str:
    expected = card.expected
    parts = [f"{expected.images:,} images"] if expected.images else []
    parts += [f"{count:,} {label}" for label, count in expected.labels.items()]
    parts += ["a known SHA-256"] if expected.checksums else []
    return ", ".join(parts)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
