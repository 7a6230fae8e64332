"""The families of rules, one file each; importing this enters all of them in `families`."""

from analysis.label.families import combination, context, following, form, kind, place, token, topic

__all__ = ["combination", "context", "following", "form", "kind", "place", "token", "topic"]
