"""The named corpus: policies of any size with names that an organisation would use. Seeded, so every run asks the same.

`modules(n)` gives authoring models with about n statements; `requests(n, count)` gives requests drawn evenly over their rules.
"""

import random
from dataclasses import dataclass

from edgeguard.policy.model import Module, Policy
from edgeguard.policy.request import Client, Request

NAME = "plausible-saas-1"
_VENDORS = [
    "stripe",
    "adyen",
    "twilio",
    "sendgrid",
    "mailgun",
    "datadog",
    "sentry",
    "segment",
    "amplitude",
    "mixpanel",
    "snowflake",
    "databricks",
    "okta",
    "auth0",
    "github",
    "gitlab",
    "atlassian",
    "slack",
    "zoom",
    "hubspot",
    "salesforce",
    "zendesk",
    "intercom",
    "algolia",
    "contentful",
    "cloudinary",
    "mapbox",
    "plaid",
    "brex",
    "ramp",
    "gusto",
    "workday",
    "docusign",
    "dropbox",
    "box",
    "figma",
    "notion",
    "airtable",
    "retool",
    "vercel",
    "netlify",
    "fastly",
    "cloudflare",
    "pagerduty",
    "opsgenie",
    "launchdarkly",
    "statsig",
]
_WORDS = [
    "api",
    "auth",
    "billing",
    "catalog",
    "cdn",
    "checkout",
    "console",
    "data",
    "events",
    "export",
    "feeds",
    "files",
    "gateway",
    "hooks",
    "identity",
    "images",
    "import",
    "ingest",
    "invoices",
    "jobs",
    "ledger",
    "login",
    "mail",
    "media",
    "metrics",
    "notify",
    "orders",
    "partner",
    "payments",
    "portal",
    "profile",
    "push",
    "quotes",
    "reports",
    "search",
    "secure",
    "ship",
    "static",
    "status",
    "stream",
    "support",
    "sync",
    "telemetry",
    "tokens",
    "tracking",
    "upload",
    "usage",
    "vault",
    "video",
    "webhooks",
]
_TLDS = ("com", "com", "com", "io", "net", "co", "dev", "cloud")
_TEAMS = (
    "payments",
    "growth",
    "media",
    "data-platform",
    "search",
    "identity",
    "logistics",
    "support",
    "finance",
    "ml-platform",
)
_SERVICES = ("api", "worker", "scheduler", "sync", "exporter", "webhook", "gateway", "batch")
_VERBS = (["GET"], ["GET", "HEAD"], ["GET", "POST"], ["POST"], ["GET", "POST", "PUT", "DELETE"])
_REGIONS = ("", "", "eu-west-1.", "us-east-1.", "ap-south-1.")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Plain module data, and one request per allow that it grants."""

    modules: tuple[dict, ...]
    granted: tuple[Request, ...]

    def policy(self) -> Policy:
        return Policy(
            modules=tuple(sorted((Module.model_validate(m) for m in self.modules), key=lambda m: m.module))
        )


def corpus(size: int, seed: int = 20261) -> Corpus:
    """A policy of `size` allows and denies (about one deny in twelve), with limits and gates on top of every few hundred."""
    rng = random.Random(seed)
    rules: dict[str, list[dict]] = {team: [] for team in _TEAMS}
    limits: list[dict] = []
    gates: list[dict] = []
    granted: list[Request] = []
    for number in range(size):
        team = _TEAMS[number % len(_TEAMS)]
        vendor, word = rng.choice(_VENDORS), rng.choice(_WORDS)
        host = f"{word}-{number:x}.{rng.choice(_REGIONS)}{vendor}.{rng.choice(_TLDS)}"
        client = f"{team}-{rng.choice(_SERVICES)}"
        id_ = f"{team}-{vendor}-{word}-{number}"
        if number % 12 == 11:
            rules[team].append(
                {
                    "id": id_,
                    "effect": "deny",
                    "to": [f"**.blocked-{number:x}.{vendor}.net"],
                    "rationale": "Not approved.",
                }
            )
            continue
        rule = {
            "id": id_,
            "effect": "allow",
            "clients": [client],
            "to": [host],
            "rationale": f"{team} uses {vendor} {word}.",
        }
        path = "/"
        if number % 3 == 0:
            rule["methods"], rule["paths"] = rng.choice(_VERBS), [f"/v{rng.randint(1, 3)}/{word}/**"]
            path = rule["paths"][0].replace("**", "item/42")
        if number % 40 == 7:
            rule["to"] = [f"*.{host}"]
            host = f"edge.{host}"
        if number % 50 == 13:
            rule["to"].append(f"10.{number % 200}.{number // 200 % 250}.0/24:8443")
            rule["resolves_to"] = [f"10.{number % 200}.{number // 200 % 250}.0/24"]
        rules[team].append(rule)
        granted.append(Request(Client(client, True), host, 443, "tls", rule.get("methods", ["GET"])[0], path))
        if number % 200 == 3:
            limits.append(
                {
                    "id": f"limit-{number}",
                    "match": {"rules": [id_]},
                    "limit": "100/s",
                    "burst": 200,
                    "unit": "requests",
                }
            )
        if number % 500 == 6:
            gates.append(
                {
                    "id": f"gate-{number}", "match": {"to": [host], "paths": ["/restricted/**"]}, "regions": ["EU"],
                    "require": {"age": 18, "assurance": "estimated"}, "rationale": "Adult content.", "legal_ref": "Example Act",
                }
            )  # fmt: skip
    modules = [{"edgeguard": 1, "module": team, "owner": team, "rules": rules[team]} for team in _TEAMS]
    modules.append({"edgeguard": 1, "module": "cost", "owner": "finops", "rate_limits": limits})
    modules.append({"edgeguard": 1, "module": "privacy", "owner": "legal", "age_gates": gates})
    return Corpus(tuple(modules), tuple(granted))


def connections(requests: tuple[Request, ...]) -> list[Request]:
    """The same requests as far as CONNECT shows them."""
    return [request._replace(method=None, target=None) for request in requests]


def to_yaml(module: dict) -> bytes:
    """YAML (its JSON subset) of one module, for the loader's benchmarks."""
    import json

    return json.dumps(module).encode()
