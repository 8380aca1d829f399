"""Docstrings say ``:meth:`Scorer.topk``` wherever they stand: such a name leads to the one object that ends with it."""

from __future__ import annotations

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


def _resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Element | None:
    if node.get("refdomain") != "py":
        return None
    target, role = str(node["reftarget"]).removeprefix("ops."), str(node["reftype"])
    if role == "attr":  # is shown with its class
        target, role = target.rpartition(".")[0] or str(node.get("py:class")), "class"
    domain = env.get_domain("py")
    ends = {entry.node_id: name for name, entry in domain.objects.items() if f".{name}".endswith(f".{target}")}
    if len(ends) != 1:
        return None
    (name,) = ends.values()
    return domain.resolve_xref(env, str(node["refdoc"]), app.builder, role, name, node, content)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
