"""`sae explain`: labels of a language model, by the protocol of the rules."""

import argparse
from typing import Any

from sae.commands import common

EXAMPLES = """export OPENAI_API_KEY=...
  sae explain configs/embedded.yaml --estimate analysis.llm.backend=openai analysis.llm.model=gpt-4o-mini \\
      analysis.llm.prices=[0.15,0.6]
  sae explain configs/embedded.yaml analysis.llm.backend=openai analysis.llm.base_url=http://localhost:8000/v1 \\
      analysis.llm.model=my-model analysis.llm.key_env=null analysis.llm.prices=[0,0]
  sae explain configs/embedded.yaml analysis.llm.backend=local analysis.llm.model=Qwen/Qwen2.5-7B-Instruct"""


def add(commands: Any) -> None:
    text = "label latents with a language model, and score those labels as rules are"
    parser = common.add_run(commands, "explain", text, explain, EXAMPLES)
    parser.add_argument("--estimate", action="store_true", help="say what it would cost, ask nothing")


def explain(arguments: argparse.Namespace) -> None:
    from analysis.explain.build import backend_of, check_cost

    cfg = common.cfg(arguments).analysis.llm
    backend_of(cfg)  # what is missing is told before any work
    with common.locked_run(arguments) as run:
        from sae import judged

        if arguments.estimate:
            common.say(check_cost(judged.labeller(run), cfg))
            return
        box = judged.llm_labels(run)
        common.say({"box": str(box.path), **box.facts})
