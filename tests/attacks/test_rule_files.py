"""Rule files that would open more than they say: rows W, at `edgeguard policy check`, as CI and the builder see them."""

import pytest
from typer.testing import CliRunner

from edgeguard.cli.policy import app

HEAD = "edgeguard: 1\nmodule: m\nowner: o\nrules:\n"


def check(folder, text):
    (folder / "m.yaml").write_text(text, encoding="utf-8")
    return CliRunner().invoke(app, ["check", str(folder)])


def allow(target):
    return f'{HEAD}  - {{id: a, effect: allow, to: ["{target}"]}}\n'


TARGETS = {
    "attack-W01": ("*", "m.yaml:5:"),
    "attack-W01-dot": ("*.", "m.yaml:5:"),
    "attack-W01-tree": ("**", "m.yaml:5:"),
    "attack-W01-tree-dot": ("**.", "m.yaml:5:"),
    "attack-W01-port": ("*:443", "m.yaml:5:"),
    "attack-W01-empty": ("", "m.yaml:5:"),
    "attack-W02": ("*.com", "m.yaml:5:"),
    "attack-W02-local": ("**.local", "m.yaml:5:"),
    "attack-W02-internal": ("*.internal", "m.yaml:5:"),
    "attack-W02-lan": ("**.lan", "m.yaml:5:"),
    "attack-W02-dot": ("*.com.", "m.yaml:5:"),
    "attack-W03": ("*.co.uk", "public suffix"),
    "attack-W03-tree": ("**.co.uk", "public suffix"),
    "attack-W03-private": ("*.github.io", "public suffix"),
    "attack-W03-idn": ("*.xn--55qx5d.cn", "public suffix"),
    "attack-W04": ("*.*.stripe.com", "m.yaml:5:"),
    "attack-W04-middle": ("login.*.example.com", "m.yaml:5:"),
    "attack-W04-part": ("*bob.example.com", "m.yaml:5:"),
    "attack-W04-inner": ("bob.ex*ample.com", "m.yaml:5:"),
    "attack-W04-last": ("example.*", "m.yaml:5:"),
    "attack-W04-question": ("exampl?.com", "m.yaml:5:"),
    "attack-W04-class": ("[a-z].example.com", "m.yaml:5:"),
    "attack-W04-brace": ("{{a,b}}.example.com", "m.yaml:5:"),
    "attack-W04-dot-first": (".example.com", "m.yaml:5:"),
    "attack-W04-three": ("***.example.com", "m.yaml:5:"),
    "attack-W08": ("api-*.example.com", "m.yaml:5:"),
    "attack-W09-lf": ("a\\nb.example.com", "m.yaml:5:"),
    "attack-W09-cr": ("a\\rb.example.com", "m.yaml:5:"),
    "attack-W09-nul": ("a\\0b.example.com", "m.yaml:5:"),
    "attack-W09-tab": ("a\\tb.example.com", "m.yaml:5:"),
    "attack-W09-space": ("a b.example.com", "m.yaml:5:"),
    "attack-W09-trailing-space": ("a.example.com ", "m.yaml:5:"),
    "attack-W09-semicolon": ("a;b.example.com", "m.yaml:5:"),
    "attack-W09-hash": ("a#b.example.com", "m.yaml:5:"),
    "attack-W09-quote": ("a'b.example.com", "m.yaml:5:"),
    "attack-W09-double": ('a\\"b.example.com', "m.yaml:5:"),
    "attack-W09-backslash": ("a\\\\b.example.com", "m.yaml:5:"),
    "attack-W09-soft-hyphen": ("a\\xADb.example.com", "m.yaml:5:"),
    "attack-W09-joiner": ("a\\u200Db.example.com", "m.yaml:5:"),
    "attack-W09-bidi": ("\\u202Emoc.elpmaxe", "m.yaml:5:"),
    "attack-W09-line-separator": ("a\\u2028b.example.com", "m.yaml:5:"),
    "attack-W10": ("https://example.com", "m.yaml:5:"),
    "attack-W10-path": ("example.com/x", "m.yaml:5:"),
    "attack-W10-user": ("user@example.com", "m.yaml:5:"),
    "attack-H10": ("тест.example.com", "xn--e1aybc.example.com"),
    "attack-H10-full-width": ("\uff45xample.com", "m.yaml:5:"),
    "attack-H10-ideographic-stop": ("example\u3002com", "m.yaml:5:"),
    "attack-H10-fake-a-label": ("xn--example-.com", "A-label"),
    "attack-W14": ("10.0.0.0/33", "m.yaml:5:"),
    "attack-W14-mapped": ("[::ffff:0:0/90]:443", "m.yaml:5:"),
    "attack-W14-brackets": ("[::1]/128", "m.yaml:5:"),
    "attack-W14-300": ("300.1.1.1", "m.yaml:5:"),
    "attack-W14-octal": ("0177.0.0.1", "m.yaml:5:"),
    "attack-W14-short": ("127.1", "m.yaml:5:"),
    "attack-W14-number": ("2130706433", "m.yaml:5:"),
    "attack-W14-host-bits": ("10.0.0.1/8", "m.yaml:5:"),
    "attack-W14-zone": ("[fe80::1%25eth0]:443", "m.yaml:5:"),
    "attack-W14-mask": ("10.0.0.0/255.0.0.0", "m.yaml:5:"),
    "attack-H07-0443": ("a.example.com:0443", "m.yaml:5:"),
    "attack-H07-0": ("a.example.com:0", "m.yaml:5:"),
    "attack-H07-65536": ("a.example.com:65536", "m.yaml:5:"),
    "attack-H07-empty": ("a.example.com:", "m.yaml:5:"),
    "attack-H07-two": ("a.example.com:80:443", "m.yaml:5:"),
    "attack-H07-plus": ("a.example.com:+443", "m.yaml:5:"),
}  # fmt: skip


@pytest.mark.parametrize(("target", "words"), [pytest.param(*v, id=k) for k, v in TARGETS.items()])
def test_a_target(tmp_path, target, words):
    done = check(tmp_path, allow(target))
    assert done.exit_code == 1
    assert words in done.output
    assert "m.yaml:5:" in done.output


FILES = {
    "attack-W12-unknown-protocol": "  - {id: a, effect: allow, to: [a.example.com], protocol: gopher}\n",
    "attack-W12-unknown-effect": "  - {id: a, effect: both, to: [a.example.com]}\n",
    "attack-W12-unknown-field": "  - {id: a, effect: allow, to: [a.example.com], access: full}\n",
    "attack-W12-twice": "  - {id: a, effect: allow, effect: deny, to: [a.example.com]}\n",
    "attack-W12-survives": "  - {id: a, effect: deny, to: [a.example.com], survive_offline: true}\n",
    "attack-W12-no-target": "  - {id: a, effect: allow}\n",
    "attack-W13-report": "  - {id: a, effect: allow, to: ['*.com'], mode: report}\n",
    "attack-W13-resource": "  - {id: a, effect: allow, resource: x}\nresources: {x: {to: ['*.com']}}\n",
    "attack-W13-learning": "  []\nlearning: [{id: l, clients: [web], unmatched: report}]\n",
    "attack-W14-resolves-to": "  - {id: a, effect: allow, to: [a.example.com], resolves_to: ['::ffff:0:0/90']}\n",
    "attack-W14-resolves-to-brackets": "  - {id: a, effect: allow, to: [a.example.com], resolves_to: ['[::1]']}\n",
    "attack-W14-resolves-to-name": "  - {id: a, effect: allow, to: [a.example.com], resolves_to: [localhost]}\n",
    "attack-W09-yaml-tag": "  - !!python/object/apply:os.system [id]\n",
    "attack-W09-alias": "  - &a {id: a, effect: allow, to: [a.example.com]}\n  - *a\n",
}


@pytest.mark.parametrize("text", [pytest.param(text, id=row) for row, text in FILES.items()])
def test_a_file(tmp_path, text):
    done = check(tmp_path, HEAD + text)
    assert done.exit_code == 1
    assert "m.yaml:" in done.output


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(HEAD + "  []\n", id="attack-W11"),
        pytest.param("edgeguard: 1\nmodule: m\nowner: o\n", id="attack-W11-no-rules"),
        pytest.param(HEAD + "  - {id: a, effect: allow, to: ['*.example.com', '**.example.org']}\n", id="attack-W05"),
        pytest.param(HEAD + "  - {id: a, effect: deny, to: ['**.com']}\n", id="attack-W01-deny"),
    ],
)  # fmt: skip
def test_what_is_fine(tmp_path, text):
    done = check(tmp_path, text)
    assert done.exit_code == 0, done.output
