"""A refusal for a person at a browser: what is asked, why, and what to do next.

Pure, and without scripts, pictures or anything that loads from elsewhere. Whatever came from outside is
escaped. Light and dark follow the browser; contrast is at least that of WCAG 2.2, level AA.
"""

import html
from typing import Final, NamedTuple

from edgeguard.policy.decision import Required
from edgeguard.policy.reasons import Reason
from edgeguard.policy.request import Assurance


class Links(NamedTuple):
    """Where a refusal leads; empty for nowhere."""

    help: str = ""
    """Where people find help; also the base of the problem types."""
    verify: str = ""
    """Where a person can show their age."""
    blocked_by: str = ""
    """Who blocks, for a 451 (RFC 7725, 4)."""


class Refusal(NamedTuple):
    """What the page says."""

    status: int
    phrase: str
    """The status phrase."""
    text: str
    """One sentence without policy detail."""
    reason: Reason
    decision: str
    rule: str | None
    required: Required | None


KINDS: Final = {
    Assurance.SELF_DECLARED: "your own statement is enough",
    Assurance.GUARDIAN_DECLARED: "a statement of a parent or guardian, or anything stronger",
    Assurance.ESTIMATED: "an estimate by an age check service, or anything stronger",
    Assurance.INFERRED: "an age known from trusted records, or a check of a document",
    Assurance.VERIFIED: "a check of an official document or record",
}
"""What each level asks of a person, in their words."""
_LEADS: Final = {
    Reason.AGE_VERIFICATION_REQUIRED: "No proof that you are {age} or older came with your request, so it was not opened.",
    Reason.AGE_BELOW_MINIMUM: "The proof of age that came with your request is for somebody younger than {age}, so it was not opened.",
    Reason.AGE_TOKEN_INVALID: "The proof of age that came with your request was not accepted. It may have run out.",
}
_STYLE: Final = """\
:root { color-scheme: light dark; --text: #1c1f23; --soft: #57606a; --ground: #f6f7f8; --card: #fff; --line: #d0d5da;
  --act: #0b57d0; --on-act: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e7e9ec; --soft: #a9b1ba; --ground: #15181b; --card: #1e2226; --line: #3b4249; --act: #a8c7fa; --on-act: #062e6f; }
}
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--ground); color: var(--text);
  font: 1rem/1.55 system-ui, sans-serif; }
main { width: min(36rem, 100% - 2rem); margin: 1rem; padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .75rem; }
h1 { margin: 0 0 .75rem; font-size: 1.5rem; line-height: 1.25; }
h2 { margin: 1.5rem 0 .25rem; font-size: 1rem; }
p { margin: 0; overflow-wrap: anywhere; }
a { color: var(--act); }
a:focus-visible { outline: 3px solid var(--act); outline-offset: 3px; }
.act { display: inline-block; margin-top: .5rem; padding: .6rem 1.1rem; border-radius: .4rem; background: var(--act);
  color: var(--on-act); font-weight: 600; text-decoration: none; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .35rem 1rem; margin: 1.75rem 0 0; padding-top: 1.25rem;
  border-top: 1px solid var(--line); font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-family: ui-monospace, monospace; }
"""
_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
<dl>
{rows}
</dl>
</main>
</body>
</html>
"""


def page(refusal: Refusal, links: Links) -> bytes:
    """The page as UTF-8."""
    if refusal.required is not None:
        title = f"You have to be {refusal.required.age} or older to see this"
        body = _gate(refusal, refusal.required, links)
    else:
        title = f"{refusal.status} {refusal.phrase}"
        body = f"<p>{html.escape(refusal.text)}</p>"
    rows = [("Reason", refusal.reason.value), ("Rule", refusal.rule), ("Decision", refusal.decision)]
    lines = [f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in rows if value]
    if links.help:
        lines.append(f"<dt>Help</dt><dd>{_anchor(links.help, links.help)}</dd>")
    return _PAGE.format(title=html.escape(title), style=_STYLE, body=body, rows="\n".join(lines)).encode()


def _gate(refusal: Refusal, required: Required, links: Links) -> str:
    lead = _LEADS.get(refusal.reason, refusal.text).format(age=required.age)
    kind = "" if required.assurance is None else f"; {KINDS[required.assurance]}"
    why = required.legal_ref or "The operator of this service asks for it."
    parts = [
        f"<p>{html.escape(lead)}</p>",
        f"<h2>What is asked</h2>\n<p>Proof that you are at least {required.age} years old{html.escape(kind)}.</p>",
        f"<h2>Why</h2>\n<p>{html.escape(why)}</p>",
    ]
    if refusal.reason is not Reason.AGE_BELOW_MINIMUM:
        way = (
            _anchor(links.verify, "Show proof of age", "act")
            if links.verify
            else "Ask whoever runs this service how to show your age."
        )
        parts.append(f"<h2>What you can do</h2>\n<p>{way}</p>")
    parts.append("<h2>Your data</h2>\n<p>Your age is checked here, and neither kept nor passed on.</p>")
    return "\n".join(parts)


def _anchor(url: str, text: str, kind: str = "") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<a{style} href="{html.escape(url)}" rel="noreferrer">{html.escape(text)}</a>'
