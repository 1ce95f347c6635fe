"""How a conversation becomes text: the template that the output's tokenizer gets.

The templates that have a name are in `chat_templates/`. They write what the models they are named after were trained
on; mergekit's `llama3` and `exaone` have line breaks and spaces beside that, and its `alpaca` lacks some.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from mergecore.checkpoint.tokenizer_files import SETTINGS, TEMPLATE, TEMPLATE_IN_JSON, TokenizerFiles
from mergecore.config.tokenizer import TEMPLATES
from mergecore.errors import PlanError

if TYPE_CHECKING:
    from jinja2.nodes import Node
    from jinja2.parser import Parser

AUTO = "auto"
_KEY = "chat_template"


def choose(asked: str, models: Iterable[TokenizerFiles], where: str) -> str | None:
    """The template that a config asks for; None for `auto` where no model has one. Raises PlanError.

    `auto` is the one that most models have; of several, that of the first model in the config.
    """
    if asked == AUTO:
        found = Counter(template.strip() for template in map(template_of, models) if template)
        return found.most_common(1)[0][0] if found else None
    if asked in TEMPLATES:
        return (resources.files(__package__) / "chat_templates" / f"{asked}.jinja").read_text(encoding="utf-8").strip()
    check(asked, where)
    return asked


def check(template: str, where: str) -> None:
    """Raises PlanError if this is not the language that transformers reads templates in."""
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """What transformers adds: `{% generation %}` around what the model says."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)

    try:
        ImmutableSandboxedEnvironment(extensions=[Generation, "jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError as error:
        raise PlanError.at(where, f"`chat_template` is not valid Jinja, in its line {error.lineno}: {error}") from error


def template_of(files: TokenizerFiles) -> str | None:
    """The template of a model; of several that have names, the one called `default`."""
    as_file = files.read(TEMPLATE)
    if as_file is not None:
        return as_file.decode("utf-8", errors="replace")
    for name in (TEMPLATE_IN_JSON, SETTINGS):
        found = files.settings(name).get(_KEY)
        if isinstance(found, list):
            named = [one for one in found if isinstance(one, dict)]
            found = next((one.get("template") for one in named if one.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None


def with_template(files: TokenizerFiles, template: str) -> TokenizerFiles:
    """The files with this template and no other, where transformers 5 looks for it."""
    written: dict[str, bytes | Mapping[str, Any]] = {TEMPLATE: template.encode()}
    kept = files.settings(SETTINGS)
    if kept.pop(_KEY, None) is not None:
        written[SETTINGS] = kept
    return files.replaced(written, frozenset({TEMPLATE_IN_JSON}))
