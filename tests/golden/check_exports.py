"""Whether the tools that exports are for read from them what the run holds. No test runs this.

    PYTHONPATH=. python tests/golden/check_exports.py write RUN DIR            our environment
    python tests/golden/check_exports.py delphi DIR TOKENIZER                  delphi's, of make_delphi.py
    python tests/golden/check_exports.py circuit-tracer DIR CHECKOUT           any with pydantic, and node
    python tests/golden/check_exports.py neuronpedia DIR CHECKOUT              any

`write` exports a finished run in these formats and notes every firing of some latents, as its codes have them: the
token, the one before it, the activation. `delphi` loads the cache with delphi's own `LatentDataset` (TOKENIZER is the
folder of the network's), which cuts and samples the windows that its explainers are shown. `circuit-tracer` has the
server of decoderesearch/circuit-tracer serve the features and the JavaScript of its front-end load them, and checks
them with its pydantic model. `neuronpedia` compares every row with the tables of hijohnnylin/neuronpedia: no field that
they do not have, none missing that they need, each of its type.
"""

import argparse
import gzip
import json
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

N_LATENTS = 64
PORT = 8047


def write(run: Path, out: Path) -> None:
    from analysis.export.circuit_tracer import paired
    from analysis.export.formats import export
    from analysis.export.results import Results

    for form in ("delphi", "circuit-tracer", "neuronpedia"):
        export(run, out / form, form)
    results = Results(run)
    stored, split = results.codes("train"), results.split("train")
    latents = np.flatnonzero(stored.counts() > 200)
    latents = latents[np.linspace(0, len(latents) - 1, N_LATENTS).astype(int)]
    found = [stored.of(latent) for latent in latents.tolist()]
    positions = np.concatenate([positions for positions, _ in found])
    arrays = {
        "latents": latents,
        "features": np.array([paired(results.layers()[0], latent) for latent in latents.tolist()]),
        "offsets": np.append(0, np.cumsum([len(positions) for positions, _ in found])),
        "tokens": split.tokens[positions].astype(np.int64),
        "before": split.tokens[positions - 1].astype(np.int64),
        "values": np.concatenate([values for _, values in found]),
        "max_values": np.array([next(results.latents(i, i + 1, ())).row["max_value"] for i in latents.tolist()]),
    }
    save_file(arrays, out / "ours.safetensors")


def delphi(out: Path, tokenizer: Path) -> None:
    import torch
    from delphi.config import ConstructorConfig, SamplerConfig
    from delphi.latents import LatentDataset
    from transformers import AutoTokenizer

    ours = load_file(out / "ours.safetensors")
    latents, raw = torch.tensor(ours["latents"]), out / "delphi" / "latents"
    (module,) = (path.name for path in raw.iterdir())
    dataset = LatentDataset(
        raw,
        SamplerConfig(),
        ConstructorConfig(min_examples=50),
        AutoTokenizer.from_pretrained(tokenizer),
        latents={module: latents},
    )
    n_checked = n_left = 0
    seen = {}
    for buffer in dataset.buffers:
        for data in buffer:
            i = ours["latents"].tolist().index(data.latent.latent_index)
            own = slice(ours["offsets"][i], ours["offsets"][i + 1])
            rows, places, _ = data.activation_data.locations.T
            n = len(rows)
            theirs = dataset.tokens[rows, places].tolist(), data.activation_data.activations.float().tolist()
            assert theirs == (ours["tokens"][own][:n].tolist(), ours["values"][own][:n].tolist())
            assert dataset.tokens[rows, places - 1].tolist() == ours["before"][own][:n].tolist()
            n_checked, n_left = n_checked + n, n_left + own.stop - own.start - n
            seen[data.latent.latent_index] = ours["values"][own][:n]
    assert sorted(seen) == ours["latents"].tolist()
    print(f"{len(seen)} latents: {n_checked} firings are ours; {n_left} are in the last, short context")  # noqa: T201
    records = 0
    for record in dataset:
        values = seen[record.latent.latent_index]
        windows = torch.stack([example.activations for example in record.examples])
        assert sorted(windows[windows > 0].float().tolist()) == sorted(values.tolist())
        assert len(record.train) and len(record.test) and len(record.not_active)
        assert record.max_activation == values.max()
        records += 1
    print(f"{records} records for its explainers and scorers; the first: {''.join(record.train[0].str_tokens)!r}")  # noqa: T201


LOADER = """
const fs = require('fs'), vm = require('vm'), zlib = require('zlib')
const [assets, port, ...features] = process.argv.slice(1)
const any = new Proxy(function () {}, {get: () => any, apply: () => any})
global.window = {location: {hostname: 'localhost', href: 'http://localhost/'}}
global.d3 = any
global.pako = {inflate: bytes => zlib.unzipSync(bytes).toString()}
const fetched = global.fetch
global.fetch = (path, options) => {
  delete options.cache
  return fetched(`http://localhost:${port}${path}`, options)
}
for (const file of ['util.js', 'feature_examples/init-feature-examples.js'])
  vm.runInThisContext(fs.readFileSync(`${assets}/${file}`, 'utf8'))
global.util = Object.assign(window.util, {initRenderAll: () => ({feature: () => 0})})
const {loadFeature} = window.initFeatureExamples({containerSel: any, showLogits: false, showExamples: false})
Promise.all(features.map(feature => loadFeature('/local', +feature))).then(found => {
  found.forEach(each => delete each.colorScale)
  process.stdout.write(JSON.stringify(found))
})
"""


def circuit_tracer(out: Path, checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    from circuit_tracer.frontend import feature_models, local_server

    ours = load_file(out / "ours.safetensors")
    served = local_server.serve(data_dir=str(out), features_dir=str(out / "circuit-tracer"), port=PORT)
    try:
        numbers = [str(number) for number in ours["features"]]
        loaded = subprocess.run(
            ["node", "-e", LOADER, str(local_server.DEFAULT_FRONTEND_DIR), str(PORT), *numbers],
            capture_output=True,
            check=True,
        )
    finally:
        served.stop()
    n_examples = 0
    for number, feature in zip(ours["latents"].tolist(), json.loads(loaded.stdout), strict=True):
        checked = feature_models.Model(**feature)
        i = ours["latents"].tolist().index(number)
        assert checked.index == number
        assert abs(checked.act_max - ours["max_values"][i]) <= 1e-4 * ours["max_values"][i]
        for group in checked.examples_quantiles:
            for example in group.examples:
                assert len(example.tokens) == len(example.tokens_acts_list) > example.train_token_ind
                assert 0 < example.tokens_acts_list[example.train_token_ind] <= checked.act_max
                n_examples += 1
    print(f"{len(ours['latents'])} features, {n_examples} examples")  # noqa: T201


TABLES = {
    "release": "SourceRelease",
    "model": "Model",
    "sourceset": "SourceSet",
    "source": "Source",
    "features": "Neuron",
    "activations": "Activation",
    "explanations": "Explanation",
    "explanation_type": "ExplanationType",
}
TYPES = {"String": str, "Int": int, "Float": (float, int), "Boolean": bool}


def neuronpedia(out: Path, checkout: Path) -> None:
    schema = (checkout / "apps" / "webapp" / "prisma" / "schema.prisma").read_text()
    counts = dict.fromkeys(TABLES, 0)
    for path in sorted((out / "neuronpedia").rglob("*.jsonl*")):
        name = path.parent.name if path.suffix == ".gz" else path.stem
        lines = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).splitlines()
        for line in lines:
            check_row(schema, TABLES[name], json.loads(line))
            counts[name] += 1
    print(counts)  # noqa: T201


@lru_cache
def columns(schema: str, table: str) -> dict[str, tuple[str, str, str]]:
    """{field: (type, `?` or `[]` or nothing, attributes)} of what is no relation."""
    (body,) = re.findall(rf"^model {table} {{(.*?)^}}", schema, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^ +(\w+) +(\w+)(\?|\[\]|)([^\n]*)$", body, re.MULTILINE)
    return {name: rest for name, *rest in found if rest[0] in (*TYPES, "Visibility", "DateTime", "Json")}


def check_row(schema: str, table: str, row: dict[str, Any]) -> None:
    known = columns(schema, table)
    for name, (kind, arity, attributes) in known.items():
        is_needed = arity == "" and "@default" not in attributes
        assert name in row or not is_needed, f"{table}.{name} is missing"
        value = row.get(name)
        assert value is not None or not is_needed, f"{table}.{name} is null"
        for each in value if arity == "[]" and name in row else [] if value is None else [value]:
            assert isinstance(each, TYPES.get(kind, str)), f"{table}.{name} = {each!r}"
    assert row.keys() <= known.keys(), f"{table} has no {row.keys() - known.keys()}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("write", "delphi", "circuit-tracer", "neuronpedia"))
    parser.add_argument("paths", nargs=2, type=Path)
    arguments = parser.parse_args()
    steps = {"write": write, "delphi": delphi, "circuit-tracer": circuit_tracer, "neuronpedia": neuronpedia}
    steps[arguments.step](*arguments.paths)
