"""The families of rules, one file each; importing this enters all of them in `families`."""

from analysis.label.families import affix, combination, context, following, form, kind, place, recent, token, topic

__all__ = ["affix", "combination", "context", "following", "form", "kind", "place", "recent", "token", "topic"]
