"""The JSON Schema of the policy language, for editors. Generated from the models; `docs/policy.schema.json` is a copy."""

import json

from edgeguard.policy.model import Module


def policy_schema() -> str:
    """JSON text, the same for the same models."""
    schema = Module.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "edgeguard policy module"
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
