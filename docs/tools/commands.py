"""The reference of the commands and of the environment variables, from the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from measured import make_table


def list_commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its full name, in the order of `comdefend --help`."""
    from comdefend_cli.cli import app

    def walk(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        if not hasattr(command, "commands"):
            yield name, command
        for key, inner in getattr(command, "commands", {}).items():
            if not inner.hidden:
                yield from walk(f"{name} {key}", inner)

    yield from walk("comdefend", typer.main.get_command(app))


def make_reference() -> str:
    """A section a command: how it is called, what it does, its arguments, and a table of options a panel of its help."""
    return "\n\n".join(f"## {name}\n\n{_describe(name, command)}" for name, command in list_commands())


def make_variables() -> str:
    """A table of the environment variables that options take their values from."""
    found: dict[str, tuple[str, list[str]]] = {}
    for name, command in list_commands():
        for parameter in command.params:
            for variable in _variables(parameter):
                found.setdefault(variable, (f"`{parameter.opts[0]}`", []))[1].append(f"`{name.removeprefix('comdefend ')}`")
    return make_table(
        ["Variable", "Stands for", "Of the commands"], [[f"`{key}`", option, ", ".join(names)] for key, (option, names) in found.items()]
    )


def _variables(parameter: Any) -> list[str]:
    value = getattr(parameter, "envvar", None)
    return [value] if isinstance(value, str) else list(value or [])


def _describe(name: str, command: Any) -> str:
    from comdefend_cli.cli.helping import EXAMPLES, describe_option, sort_into_panels

    context = typer.Context(command, info_name=name)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    short = name.removeprefix("comdefend ")
    parts = [f"```text\n{' '.join([name, *command.collect_usage_pieces(context)])}\n```", _unwrap(command.help or "")]
    if short in EXAMPLES:
        parts.append("```sh\n" + "\n".join(EXAMPLES[short]) + "\n```")
    if arguments:
        parts.append(
            make_table(["Argument", "Meaning"], [[f"`{each.metavar or each.name}`", _escape(each.help or "")] for each in arguments])
        )
    for panel, names in sort_into_panels(short, [str(each.name) for each in options]).items():
        rows = [describe_option(each, context) for each in options if each.name in names]
        if rows:
            table = make_table([panel, "Meaning"], [[f"`{spelled}`", _escape(meaning)] for spelled, meaning in rows])
            parts.append(table)
    return "\n\n".join(filter(None, parts))


def _unwrap(text: str) -> str:
    """Help as Markdown: paragraphs, whose lines are broken as the source is."""
    return "\n\n".join(" ".join(block.split()) for block in text.replace("\b", "").split("\n\n"))


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
