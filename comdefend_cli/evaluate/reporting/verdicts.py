"""One sentence a system: what it stops, what it does not, computed from the headline numbers alone."""

from __future__ import annotations

from comdefend_cli.evaluate.cells import say_epsilon
from comdefend_cli.evaluate.reporting.tables import NO_BREAK, THREATS, UNDEFENDED, Measured, System, Tables
from comdefend_cli.evaluate.stats import SIGNIFICANT, compare_paired

#: What the words of a verdict mean, for the reader.
MEANING = (
    "“Stops most”: at least half of the accuracy that the classifier has on clean images without a defence remains, by the lower end "
    "of the 95 % interval, and more than remains without the defence. “Stops some”: less than that, but more than without the defence. "
    "“Not measurably”: the difference to the undefended classifier, image by image, may be chance (McNemar’s exact test, p ≥ 0.05). Each "
    "is judged by what all attacks of the threat model together leave, in brackets, ε ascending."
)


def say_verdict(tables: Tables, system: System) -> str:
    """What a system stops and what it does not, and what it costs on clean images."""
    clauses = [_under(tables, system, threat) for threat in THREATS if not _nothing_to_know(tables, system, threat)]
    clauses.append(_price(tables, system))
    if system in tables.alarmed:
        clauses.append("a gradient-masking alarm rang: its adaptive accuracy may be lower than measured")
    text = "; ".join(clauses if system.defence != UNDEFENDED else [f"no defence: {clauses[0]}", *clauses[1:]])
    text = text.replace(" %", f"{NO_BREAK}%").replace("ε = ", f"ε{NO_BREAK}={NO_BREAK}")
    return f"{text[0].upper()}{text[1:]}."


def _nothing_to_know(tables: Tables, system: System, threat: str) -> bool:
    """Whether the adaptive model says nothing that the grey-box one does not: there is no defence to adapt to."""
    if (system.defence, threat) != (UNDEFENDED, "adaptive"):
        return False
    return not any(tables.find_headline(system, threat, epsilon) for epsilon in tables.epsilons)


def _under(tables: Tables, system: System, threat: str) -> str:
    """The clause on one threat model."""
    measured = [found for epsilon in tables.epsilons if (found := tables.find_headline(system, threat, epsilon))]
    if not measured:
        return f"{threat} attacks not measured"
    if system.defence != UNDEFENDED and any(tables.find_undefended(system, threat, each.epsilon or 0.0) is None for each in measured):
        return f"{threat} attacks {_numbers(tables, measured, 'any')}, with no undefended classifier to compare with"
    if system.defence == UNDEFENDED:
        return f"{threat} attacks leave {_enumerate([f'{each.accuracy:.1f}' for each in measured])} % {_where(tables, measured, 'each')}"
    kinds: dict[str, list[Measured]] = {"most": [], "some": [], "none": []}
    for each in measured:
        kinds[_kind(tables, each)].append(each)
    if len(kinds["none"]) == len(measured):
        return f"does not measurably stop {threat} attacks {_numbers(tables, measured, 'any')}"
    words = {"most": "most", "some": "some", "none": "not measurably any"}
    first, *rest = [(words[kind], _numbers(tables, found, "every")) for kind, found in kinds.items() if found]
    return ", ".join([f"stops {first[0]} {threat} attacks {first[1]}", *(f"{word} {where}" for word, where in rest)])


def _kind(tables: Tables, measured: Measured) -> str:
    system = measured.system
    reference = tables.find_undefended(system, measured.threat, measured.epsilon or 0.0)
    if reference is None or not _exceeds(measured, reference):
        return "none"
    bare = tables.find_clean(System(system.classifier, UNDEFENDED)) or tables.find_clean(system)
    return "most" if bare is not None and measured.low >= bare.accuracy / 2 else "some"


def _exceeds(measured: Measured, reference: Measured) -> bool:
    """Whether more of the same images are right, and by more than chance."""
    n = min(measured.n, reference.n)
    more = sum(measured.outcomes[:n]) > sum(reference.outcomes[:n])
    return more and compare_paired(measured.outcomes, reference.outcomes) < SIGNIFICANT


def _numbers(tables: Tables, measured: list[Measured], all_of_them: str) -> str:
    """Where, and how much is left: "at ε = 2/255 and 8/255 (59.4 and 21.6 %)", "at every ε (59.4, 21.6 and 6.6 %)"."""
    return f"{_where(tables, measured, all_of_them)} ({_enumerate([f'{each.accuracy:.1f}' for each in measured])} %)"


def _where(tables: Tables, measured: list[Measured], all_of_them: str) -> str:
    epsilons = [each.epsilon for each in measured]
    everywhere = len(epsilons) > 1 and epsilons == tables.epsilons
    return f"at {all_of_them} ε" if everywhere else f"at ε = {_enumerate([say_epsilon(epsilon or 0.0) for epsilon in epsilons])}"


def _enumerate(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _price(tables: Tables, system: System) -> str:
    clean, bare = tables.find_clean(system), tables.find_clean(System(system.classifier, UNDEFENDED))
    if clean is None:
        return "clean accuracy not measured"
    said = f"clean accuracy {clean.accuracy:.1f} %"
    if system.defence == UNDEFENDED or bare is None:
        return said
    points = round(clean.accuracy - bare.accuracy, 1)
    if points == 0:
        return f"{said}, as without a defence"
    chance = ", which may be chance" if compare_paired(clean.outcomes, bare.outcomes) >= SIGNIFICANT else ""
    return f"{said}, {abs(points):.1f} points {'below' if points < 0 else 'above'} no defence{chance}"
