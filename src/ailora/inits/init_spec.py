"""The words that name an init in configurations and files."""

from __future__ import annotations

from collections.abc import Mapping

from ailora.errors import parse_choice, unknown_name
from ailora.inits.init import Init
from ailora.inits.kaiming import Kaiming
from ailora.inits.spectral import Size, Spectral
from ailora.spectral import Band

#: word -> its init; None: such a projection stays frozen
INIT_WORDS: dict[str, Init | None] = {
    "principal": Spectral(Band.PRINCIPAL),
    "minor": Spectral(Band.MINOR),
    "lora": Kaiming(),
    "none": None,
}


def parse_init(spec: object) -> Init | None:
    """Parse a word (`principal`, `minor`, `lora`, `none`), a mapping (`{init: minor, size: unit}`), or an `Init`.

    Returns:
        The init; None for `none`: such a projection stays frozen.

    Raises:
        InputError: unknown word, option or size.
    """
    if spec is None or isinstance(spec, Init):
        return spec
    fields = dict(spec) if isinstance(spec, Mapping) else {"init": spec}
    name = fields.pop("init", None)
    if not isinstance(name, str) or name not in INIT_WORDS:
        raise unknown_name("init", name, INIT_WORDS)
    init = INIT_WORDS[name]
    options = ("size",) if isinstance(init, Spectral) else ()
    for option in fields:
        if option not in options:
            raise unknown_name(f"option of init {name!r}", option, options)
    return (
        Spectral(init.band, parse_choice("size", fields["size"], Size))
        if fields and isinstance(init, Spectral)
        else init
    )
