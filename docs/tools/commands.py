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
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    panels: dict[str, list[list[str]]] = {}
    for option in command.params:
        if option.param_type_name == "option" and not option.hidden:
            panels.setdefault(option.rich_help_panel or "", []).append([_spell(option), _explain(option)])
    called = " ".join([name, "[OPTIONS]", *(f"{each.metavar or each.name.upper()}" for each in arguments)])
    parts = [f"```text\n{called}\n```", _text(command.help or "")]
    if any(each.help for each in arguments):
        parts.append(
            make_table(["Argument", "Meaning"], [[f"`{each.metavar or each.name.upper()}`", _explain(each)] for each in arguments])
        )
    for panel, rows in panels.items():
        parts.append("\n\n".join(filter(None, [f"**{panel}**" if panel else "", make_table(["Option", "Meaning"], rows)])))
    return "\n\n".join(filter(None, parts))


def _text(text: str) -> str:
    """Help as Markdown: what begins with `comdefend` or is indented is an example."""
    parts = []
    for block in text.replace("\b", "").split("\n\n"):
        lines = [line.strip() for line in block.strip().splitlines()]
        commands = [line for line in lines if line.startswith("comdefend ")]
        parts.append("```sh\n" + "\n".join(lines) + "\n```" if lines and len(commands) == len(lines) else "\n".join(lines))
    return "\n\n".join(parts)


def _spell(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{spelled}{value}`" for spelled in (*option.opts, *option.secondary_opts))


def _explain(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split()).replace("|", "\\|").replace("<", "&lt;")
    default = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    shown = parameter.show_default is not False and default not in (None, False, "", ()) and not callable(default)
    said = f" Default: {default}." if shown and "Default:" not in text else ""
    variables = ", ".join(f"`{variable}`" for variable in _variables(parameter))
    return f"{text}{said}{f' Environment: {variables}.' if variables else ''}"
