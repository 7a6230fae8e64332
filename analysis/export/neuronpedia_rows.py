"""What stands in Neuronpedia's tables about a source: a dictionary, or one layer of it.

Rows are those of hijohnnylin/neuronpedia, apps/webapp/prisma/schema.prisma, with the fields that SAEDashboard writes
(sae_dashboard/neuronpedia/neuronpedia_export.py), less those that would be empty or a time.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from analysis.export.results import Example, Group, Latent, Results, short, shorts
from analysis.index.examples import INTERVALS, STRATA
from sae.config import config

BOUNDS = dict(zip((name for name, kind in STRATA if kind == "interval"), INTERVALS, strict=True))
"""Of each interval of activation, as shares of the maximum."""
SEEDED_ACCOUNT = "clkht01d40000jv08hvalcvly"
EXPLANATION_TYPE = "sae-atlas_rule"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Count = Annotated[int, Field(ge=0)]
Row = dict[str, Any]


@config
class Options:
    """What Neuronpedia should call things."""

    model: Name | None = None
    """Its id of the network, such as gpt2-small; none means the last part of the run's `model.name`."""
    source_set: Name | None = None
    """Name of the set of sources, without a layer; none means place, architecture and width: mlp-out-topk-4096."""
    layer: Count | None = None
    """Layer of the network; none means the one in the site's name."""
    release: Name = "sae-atlas"
    """Id of the release that the set belongs to."""
    title: str | None = None
    """Of the release; none means the model and the site."""
    creator: str = "sae-atlas"
    """Shown as the author."""
    creator_id: Name = SEEDED_ACCOUNT
    """The account that owns what is imported; the default is the one that every instance begins with."""
    url: str | None = None
    """Of a paper or a page about the release."""
    hf_repo: str | None = None
    """Repository on the Hugging Face hub that has the weights."""
    hf_folder: str | None = None
    """Folder in it."""
    layers: Count = 0
    """Layers of the network, for an instance that does not know it yet; 0: unknown."""
    neurons: Count = 0
    """Neurons of a layer, likewise."""


class Source:
    """The rows of one source."""

    def __init__(self, results: Results, options: Options, group: Group, layer: int) -> None:
        self.results, self.options, self._group = results, options, group
        self.model = options.model or _slug(results.model.rstrip("/").rpartition("/")[2])
        self.set = options.source_set or _slug(f"{group.kind} {results.dictionary['type']} {group.last - group.first}")
        self.id = f"{layer}-{self.set}"
        self._about = f"{self.model}, {', '.join(group.sites)}"
        self._owner = {"creatorId": options.creator_id, "visibility": "PUBLIC"}

    def release(self) -> Row:
        options = self.options
        title = options.title or self._about
        return {
            "name": options.release,
            "description": title,
            "descriptionShort": title,
            "urls": [options.url] if options.url else [],
            "creatorName": options.creator,
            "creatorNameShort": options.creator,
            **self._owner,
        }

    def network(self) -> Row:
        """Of the table `Model`; one that is there already is left alone."""
        return {
            "id": self.model,
            "displayName": self.model,
            "displayNameShort": self.model,
            "layers": self.options.layers,
            "neuronsPerLayer": self.options.neurons,
            "owner": "",
            "instruct": False,
            "inferenceEnabled": False,
            **self._owner,
        }

    def source_set(self) -> Row:
        return {
            "modelId": self.model,
            "name": self.set,
            "description": self._about,
            "type": "",
            "urls": [],
            "creatorName": self.options.creator,
            "releaseName": self.options.release,
            "hasDashboards": True,
            **self._owner,
        }

    def source(self) -> Row:
        data, n_tokens = self.results.tokens.box.inputs["data"], self.results.box("index").facts["n_tokens"]
        return {
            "id": self.id,
            "modelId": self.model,
            "setName": self.set,
            "dataset": data["source"],
            "num_tokens_in_prompt": data["context"],
            "notes": f"Statistics of {n_tokens:,} tokens, made by sae-atlas.",
            "hasDashboards": True,
            "inferenceEnabled": False,
            "hfRepoId": self.options.hf_repo,
            "hfFolderId": self.options.hf_folder,
            **self._owner,
        }

    def feature(self, latent: Latent) -> Row:
        """Of the table `Neuron`."""
        row = latent.row
        n_bins = len(row["histogram"]) if row["n_fired"] else 0
        centres = (np.arange(n_bins) + 0.5) / max(n_bins, 1) * row["max_value"]
        near = list(zip(row["neighbours"], row["neighbour_cosines"], strict=True))
        near = [(own - self._group.first, cosine) for own, cosine in near if self._group.has(own)]
        return {
            **self._key(latent),
            "sourceSetName": self.set,
            "creatorId": self.options.creator_id,
            "maxActApprox": short(row["max_value"]),
            "frac_nonzero": short(row["density"]),
            "pos_str": self.results.texts(row["promoted_tokens"]),
            "pos_values": [short(value) for value in row["promoted_logits"]],
            "neg_str": self.results.texts(row["suppressed_tokens"]),
            "neg_values": [short(value) for value in row["suppressed_logits"]],
            "freq_hist_data_bar_heights": row["histogram"][:n_bins],
            "freq_hist_data_bar_values": shorts(centres),
            "topkCosSimIndices": [own for own, _ in near],
            "topkCosSimValues": [short(cosine) for _, cosine in near],
        }

    def activation(self, latent: Latent, example: Example) -> Row:
        """Of the table `Activation`."""
        values, peak = shorts(example.values), int(example.values.argmax())
        place = f"{example.split}:{example.position}"
        return {
            "id": self._id(latent, place),
            **self._key(latent),
            "creatorId": self.options.creator_id,
            "tokens": self.results.texts(example.tokens),
            "values": values,
            "maxValue": values[peak],
            "maxValueTokenIndex": peak,
            "minValue": min(values),
            **self._bin(latent.row, example),
            "qualifyingTokenIndex": example.at,
            "dataIndex": place,
            "dataSource": self._document(example),
        }

    def _bin(self, row: Mapping[str, Any], example: Example) -> Row:
        """Its interval of activation and the share of all tokens in it; -1 says that it is one of the strongest."""
        if example.kind != "interval":
            return {"binMin": -1.0, "binMax": short(row["max_value"]), "binContains": -1.0}
        (low, high), n_bins = BOUNDS[example.stratum], len(row["histogram"])
        inside = sum(row["histogram"][round(low * n_bins) : round(high * n_bins)])
        return {
            "binMin": short(low * row["max_value"]),
            "binMax": short(high * row["max_value"]),
            "binContains": short(inside / self.results.box("index").facts["n_kept"]),
        }

    def _document(self, example: Example) -> str:
        split = self.results.split(example.split)
        document = int(split.locate(np.array([example.position]))[0][0])
        return ": ".join(filter(None, (split.documents[name][document] for name in ("source", "title"))))

    def explanation(self, latent: Latent) -> Row:
        """Of the table `Explanation`: a label, with its score in the notes."""
        return {
            "id": self._id(latent, "label"),
            **self._key(latent),
            "description": latent.label["text"],
            "authorId": self.options.creator_id,
            "typeName": EXPLANATION_TYPE,
            "notes": _notes(latent.label),
        }

    def _key(self, latent: Latent) -> dict[str, str]:
        return {"modelId": self.model, "layer": self.id, "index": str(latent.row["latent"] - self._group.first)}

    def _id(self, latent: Latent, what: str) -> str:
        """As long as theirs, and the same each time, so that a second import adds nothing."""
        return "c" + hashlib.sha256("\0".join([*self._key(latent).values(), what]).encode()).hexdigest()[:24]


def explanation_type(options: Options) -> Row:
    """Of the table `ExplanationType`, which explanations refer to."""
    return {
        "name": EXPLANATION_TYPE,
        "displayName": "sae-atlas rule",
        "description": "The sentence of an executable rule that was fitted, chosen and scored on disjoint documents.",
        "creatorName": options.creator,
        "creatorId": options.creator_id,
    }


def _notes(label: Mapping[str, Any]) -> str | None:
    if not label["scores"]:
        return None
    token = f"; best single token {label['token']['f1']:.2f}" if label["token"] else ""
    return f"F1 {label['scores']['f1']:.2f} ({label['f1_low']:.2f} to {label['f1_high']:.2f}) on held-out text{token}"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
