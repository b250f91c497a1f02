"""mitmproxy's addons are imported one by one, and whole where somebody wants them whole."""

import json
import subprocess
import sys

HEAVY = ["flask", "ldap3", "werkzeug", "jinja2"]


def ask(code):
    script = f"import json, sys\n{code}\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_a_node_does_not_bring_what_it_does_not_use():
    assert ask("import edgeguard.proxy.node") == []


def test_stock_tools_find_the_whole_package():
    assert "flask" in ask(
        "import edgeguard.proxy.node\nfrom mitmproxy import addons\n"
        "assert len(addons.default_addons()) > 20\nfrom mitmproxy.addons import core, dumper"
    )


def test_what_was_imported_before_stays():
    ask(
        "import mitmproxy.addons as before\nimport edgeguard.proxy.node\nassert sys.modules['mitmproxy.addons'] is before"
    )
