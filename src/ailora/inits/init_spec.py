"""Names of inits in configurations and files."""

from __future__ import annotations

from collections.abc import Mapping

from ailora.errors import parse_choice, unknown_name
from ailora.inits.init import Init
from ailora.inits.kaiming import Kaiming
from ailora.inits.spectral import Size, Spectral
from ailora.spectral import Band

#: Name -> init. None means that the projection gets no adapter.
_INITS: dict[str, Init | None] = {
    "principal": Spectral(Band.PRINCIPAL),
    "minor": Spectral(Band.MINOR),
    "lora": Kaiming(),
    "none": None,
}


def parse_init(spec: object) -> Init | None:
    """Parse a name (`principal`, `minor`, `lora`, `none`), a mapping (`{init: minor, size: unit}`), or an `Init`.

    Returns:
        The init. None for `none` and None: the projection gets no adapter.

    Raises:
        InputError: The name, an option or the size is unknown.
    """
    if spec is None or isinstance(spec, Init):
        return spec
    fields = dict(spec) if isinstance(spec, Mapping) else {"init": spec}
    name = fields.pop("init", None)
    if not isinstance(name, str) or name not in _INITS:
        raise unknown_name("init", name, _INITS)
    init = _INITS[name]
    options = ("size",) if isinstance(init, Spectral) else ()
    for option in fields:
        if option not in options:
            raise unknown_name(f"option of init {name!r}", option, options)
    if fields and isinstance(init, Spectral):
        return Spectral(init.band, parse_choice("size", fields["size"], Size))
    return init
