"""The same rules and requests in embedded Rego (opa-eval, which is regorus) and in Cedar, one after the other in one run.

Both are written the way their own documentation would: Rego looks hosts up in its data document instead of walking the rules;
Cedar gets one policy per rule. They judge client, host, port, method and path. Limits, gates, readings of a path, near misses and
lanes are left to us alone, so the ratios are on the low side. Every engine builds its own form of the request inside the measured
time, and all have to give the same answers before anything is measured.
"""

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edgeguard.policy.request import Client, Request
from tests.bench.corpus import Corpus
from tests.bench.policies import NOW, engine, named
from tests.bench.run import Run, percentile, time_batches

SIZE = 1000
"""Rules."""
ROUNDS = 7
"""Interleaved; the ratio is the median of the pairs."""
type Loop = Callable[[Sequence[Request]], None]
type Judge = Callable[[Request], bool]

MODULE = """
package edge
import rego.v1

labels := split(input.host, ".")

names contains concat(".", array.slice(labels, i, count(labels))) if some i, _ in labels

granted if {
    some rule in data.exact[input.host]
    fits(rule)
}

granted if {
    some name in names
    name != input.host
    some rule in data.below[name]
    fits(rule)
}

fits(rule) if {
    rule.client == input.client
    rule.port == input.port
    method(rule)
    path(rule)
}

method(rule) if not rule.methods
method(rule) if input.method in rule.methods

path(rule) if not rule.prefix
path(rule) if startswith(input.path, rule.prefix)

denied if {
    some name in names
    data.denied[name]
}

default allow := false

allow if {
    granted
    not denied
}
"""


def measure(run: Run) -> dict[str, float]:
    keys = ("decision.vs_rego", "decision.vs_cedar")
    try:
        import cedarpy
        import opa_eval
    except ImportError as error:
        run.absent(keys, f"{error.name} is not installed")
        return {}
    asked = questions(named(SIZE))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "edge.rego")
        source.write_text(MODULE)
        rego = opa_eval.OpaEval(str(source), json.dumps(rego_data(named(SIZE))), "data.edge.allow")
    policies = cedarpy.PolicySet.from_str(cedar_policies(named(SIZE)))
    subject = engine(SIZE)
    judges: dict[str, Judge] = {
        "ours": lambda r: subject.decide(Request(*r), NOW).allow,
        "rego": lambda r: rego.evaluate_parsed(json.dumps(rego_input(r))) is True,
        "cedar": lambda r: cedarpy.is_authorized(cedar_request(r), policies, []).allowed,
    }
    for request in asked:
        answers = {name: judge(request) for name, judge in judges.items()}
        if len(set(answers.values())) > 1:
            raise RuntimeError(f"{request}: {answers}, so they do not judge the same policy")
    samples = {"ours": run.pick(500, 5000), "rego": run.pick(50, 300), "cedar": run.pick(20, 100)}
    found: dict[str, list[float]] = {name: [] for name in judges}
    for _ in range(run.pick(2, ROUNDS)):
        for name, judge in judges.items():
            times = time_batches(_loop(judge), asked, batch=4, samples=samples[name])
            found[name].append(percentile(times, 0.5))
    run.raw |= {f"decision.beside.{name}.p50_us": times for name, times in found.items()}
    figures = {f"decision.beside.{name}.us": percentile(times, 0.5) for name, times in found.items()}
    return figures | {
        "decision.vs_rego": _ratio(found["rego"], found["ours"]),
        "decision.vs_cedar": _ratio(found["cedar"], found["ours"]),
    }


def _ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """Median of the pairs."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _loop(judge: Judge) -> Loop:
    def loop(requests: Sequence[Request]) -> None:
        for request in requests:
            judge(request)

    return loop


def questions(corpus: Corpus) -> list[Request]:
    """Requests that the corpus grants, and some that it does not: another client, another host, a denied one, another path."""
    granted = list(corpus.granted[:200])
    other = [r._replace(client=Client("nobody-worker", True)) for r in granted[:15]]
    other += [r._replace(host=f"not-{r.host}") for r in granted[:15]]
    other += [r._replace(host="x.blocked-b.example.net") for r in granted[:5]]
    other += [r._replace(target="/elsewhere") for r in granted[:15]]
    return granted + other


def _rules(corpus: Corpus) -> list[dict]:
    return [rule for module in corpus.modules for rule in module.get("rules", ())]


def rego_data(corpus: Corpus) -> dict[str, dict]:
    """Rules by host, as an author who cares for speed would lay them out."""
    exact: dict[str, list] = {}
    below: dict[str, list] = {}
    denied: dict[str, bool] = {}
    for rule in _rules(corpus):
        for target in rule["to"]:
            if rule["effect"] == "deny":
                denied[target.removeprefix("**.")] = True
                continue
            if "/" in target:
                continue  # networks match addresses only, and none is asked for
            row = {"client": rule["clients"][0], "port": 443}
            if "paths" in rule:
                row |= {"methods": rule["methods"], "prefix": rule["paths"][0].removesuffix("**")}
            wild = target.startswith("*.")
            (below if wild else exact).setdefault(target.removeprefix("*."), []).append(row)
    return {"exact": exact, "below": below, "denied": denied}


def rego_input(request: Request) -> dict[str, object]:
    return {
        "client": request.client.name,
        "host": request.host,
        "port": request.port,
        "method": request.method,
        "path": request.target,
    }


def cedar_policies(corpus: Corpus) -> str:
    """One policy per rule and target."""
    out = []
    for rule in _rules(corpus):
        for target in rule["to"]:
            if rule["effect"] == "deny":
                name = target.removeprefix("**.")
                out.append(
                    f'forbid(principal, action, resource) when {{ context.host == "{name}" || context.host like "*.{name}" }};'
                )
                continue
            if "/" in target:
                continue
            wild = target.startswith("*.")
            where = "resource" if wild else f'resource == Host::"{target}"'
            when = ["context.port == 443"]
            if wild:
                when.append(f'context.host like "{target}"')
            if "paths" in rule:
                when.append(f'context.path like "{rule["paths"][0].removesuffix("**")}*"')
            actions = ", ".join(f'Action::"{method}"' for method in rule.get("methods", ()))
            action = f"action in [{actions}]" if actions else "action"
            out.append(
                f'permit(principal == Client::"{rule["clients"][0]}", {action}, {where}) when {{ {" && ".join(when)} }};'
            )
    return "\n".join(out)


def cedar_request(request: Request) -> dict[str, object]:
    return {
        "principal": f'Client::"{request.client.name}"',
        "action": f'Action::"{request.method}"',
        "resource": f'Host::"{request.host}"',
        "context": {"host": request.host, "port": request.port, "path": request.target},
    }
