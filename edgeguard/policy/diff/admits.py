"""Whether one resolved address may be dialled."""

from edgeguard.policy.decision import Admission
from edgeguard.policy.engine import Engine
from edgeguard.policy.paths import PathError
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Request


def admits(engine: Engine, request: Request, address: str, at: float, *, restricted: bool) -> Admission:
    """`Engine.admit` for one address; a target without an honest reading is refused, as everywhere."""
    try:
        return engine.admit(request, [address], at, restricted=restricted)
    except PathError:
        return Admission((), Reason.MALFORMED_REQUEST)
