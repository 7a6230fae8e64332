"""The label in words: the tokens that were tested, and by how much they changed."""

from collections.abc import Sequence

from analysis.effects.named import Kind
from analysis.label.sentence import show


def sentence(kind: Kind, tokens: Sequence[int], strings: Sequence[str], nats: float | None) -> str:
    """`Promotes “York”, “City” (+0.8 nats).`

    Args:
        tokens: those that are named.
        nats: the change as the label says it, on the test split; none where there was no firing.
    """
    names = ", ".join(dict.fromkeys(show(strings[token]) for token in tokens))
    amount = "" if nats is None else f" ({signed(kind.sign * nats)} nats)"
    return f"{kind.verb.capitalize()} {names}{amount}."


def signed(value: float) -> str:
    """Two significant digits, and the sign."""
    sign = "\N{MINUS SIGN}" if value < 0 else "+"
    return f"{sign}{float(f'{abs(value):.2g}'):g}"
