"""Every architecture on the embedded GPT-2, at equal L0: what it reconstructs, and what that is worth to the network.

python -m benchmarks.architectures [--tokens 1000000]

All learn from one stream of the run's activations (`mlp_out.3`; those of several sites from these and
their neighbours), side by side in one pass. A penalty's coefficient, and a k that is not met in use,
is searched: a pass for each round, of those that are not there yet.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.knobs import Knob, Try, nearest
from benchmarks.peers.sae_atlas import KNOBS
from sae import hub
from sae.architectures.configs import configs
from sae.config import parse, to_json
from sae.files import read_json
from sae.run import VERSIONS, Run
from sae.run_config import load_config
from sae.stage import stages
from sae.store import ActivationStore, Places
from train import evaluate
from train.config import TrainConfig
from train.learner import Member
from train.trainer import fit

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "runs" / "architectures"
TARGET, TOLERANCE, MAX_ROUNDS = 24, 1.0, 6
ONE, TWO = Places(("mlp_out.3",)), Places(("mlp_out.2", "mlp_out.3"))
MLP, MLPS = Places(("mlp_in.3",), ("mlp_out.3",)), Places(("mlp_in.2", "mlp_in.3"), ("mlp_out.2", "mlp_out.3"))
SITES = tuple(dict.fromkeys((*ONE.sites, *TWO.sites, *MLP.sites, *MLPS.sites)))
FIRST_COEFFICIENTS = {
    "relu": 5.0,
    "relu_april": 5.0,
    "jumprelu": 4e-3,
    "jumprelu_tanh": 5.0,
    "gated": 4.0,
    "p_anneal": 4.0,
    "crosscoder": 2.0,
    "cross_layer_transcoder": 5.0,
}
"""Where the search of a penalty's coefficient begins."""


@dataclass(frozen=True)
class Case:
    """A dictionary of the table."""

    name: str
    type: str
    places: Places

    @property
    def field(self) -> str:
        """What sets its L0."""
        return "sparsity_coef" if self.type in FIRST_COEFFICIENTS else "k"

    @property
    def knob(self) -> Knob:
        is_k = self.field == "k"
        return Knob(TARGET if is_k else FIRST_COEFFICIENTS[self.type], is_rising=is_k, is_whole=is_k)


CASES = (
    *(Case(name, name, ONE) for name in KNOBS),
    Case("transcoder", "topk", MLP),
    Case("crosscoder", "crosscoder", TWO),
    Case("crosscoder_batchtopk", "crosscoder_batchtopk", TWO),
    Case("cross_layer_transcoder", "cross_layer_transcoder", MLPS),
)


def main(tokens: int, n_latents: int) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    assignments = [f"harvest.sites=[{','.join(SITES)}]", f"train.site={SITES[0]}"]
    run = Run(load_config(ROOT / "configs" / "embedded.yaml", assignments), FOLDER)
    train = TrainConfig(tokens=tokens, lr=1e-3, evaluate_every=0, tracker="none")
    store = run.activation_store
    tries: dict[Case, list[Try]] = {case: [] for case in CASES}
    for _ in range(MAX_ROUNDS):
        due = {case: knob for case, own in tries.items() if (knob := _next(case, own)) is not None}
        if not due:
            break
        for case, l0 in _train(due, store, train, n_latents).items():
            tries[case].append(Try(due[case], l0))
            logging.info("%s, knob %g: L0 %.2f", case.name, due[case], l0)
    figures = {"tokens": tokens, "n_latents": n_latents, "lr": train.lr, "target": TARGET, "cases": {}}
    for case, own in tries.items():
        knob = nearest(own, TARGET).knob
        found = {"type": case.type, "places": to_json(case.places), "knob": knob, "tries": to_json(own)}
        figures["cases"][case.name] = found | _evaluate(run, store, case.places, _folder(case, knob))
    results.save("architectures", figures)


def _next(case: Case, own: Sequence[Try]) -> float | None:
    is_met = bool(own) and abs(nearest(own, TARGET).l0 - TARGET) <= TOLERANCE
    return None if is_met else case.knob.next(own, TARGET)


def _folder(case: Case, knob: float) -> Path:
    return FOLDER / "dictionaries" / f"{case.name}-{knob:g}"


def _train(due: Mapping[Case, float], store: ActivationStore, train: TrainConfig, n_latents: int) -> dict[Case, float]:
    """Train the dictionaries that are not there yet, in one pass; returns the L0 of each on held-out rows."""
    members, boxes = {}, {}
    for case, knob in due.items():
        sae = parse(configs.get(case.type), {case.field: knob, "n_latents": n_latents}, "sae")
        path = _folder(case, knob)
        boxes[path] = {
            "activations": store.box.digest,
            "code": VERSIONS["dictionary"],
            "type": case.type,
            "sae": to_json(sae),
            "places": to_json(case.places),
            "train": to_json(train),
        }
        members[path] = Member(case.places, sae, train, {"model": "embedded"}, path, case.name)
    stages(boxes, lambda paths: fit([members[path] for path in paths], store, 0, FOLDER / "logs"))
    return {case: read_json(_folder(case, knob) / "curve.json")[-1]["l0"] for case, knob in due.items()}


def _evaluate(run: Run, store: ActivationStore, places: Places, path: Path) -> dict[str, Any]:
    """Held-out figures on the test documents, as `sae run` has them."""
    dictionary = hub.load(path).to(run.subject.device)
    means = {site: store.mean(site) for site in places.written}
    figures = evaluate.reconstruct(dictionary, store.pairs(places, "test"), run.subject.device).result()
    spliced = evaluate.splice(
        run.subject,
        dictionary,
        places,
        means,
        run.token_store.split("test"),
        store.skip_positions,
        run.cfg.analysis.index.evaluation_tokens,
        run.cfg.harvest.batch_tokens,
    )
    kept = {name: figures[name] for name in ("l0", "fvu", "dead_fraction")}
    return kept | {name: spliced[name] for name in ("ce_recovered", "kl", "tokens")}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="rows that each dictionary is trained on")
    parser.add_argument("--latents", type=int, default=4096)
    given = parser.parse_args()
    main(given.tokens, given.latents)
