"""Keep secrets of configurations, such as tokens and passwords, out of files and output.

Secrets are values below `training` with keys such as `hub_token`, and passwords in the URL of a `storage`. Similar keys
in other sections are not secrets. For example, `cross_key` below `adapter.rank` is a role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote_plus

MASK = "***"

#: End of a key whose value is a secret. An environment (`env`) maps variables to values, such as access tokens.
_SECRET_KEY = re.compile(r"(token|password|passwd|passphrase|pwd|^pw|secret|credentials?|_key|apikey|_env|^env)$", re.I)
#: Keys for special tokens of a tokenizer, such as `pad_token`. Their values are not secrets.
_SPECIAL_TOKEN_KEY = re.compile(r"(^|_)(bos|eos|pad|unk|sep|cls|mask|image|audio|video)_token$", re.I)
#: Section whose values may be secrets, and key whose value is a database URL.
_SECRETS_SECTION, _URL_KEY = "training", "storage"
_SCHEME = re.compile(r"[\w+.-]+")
#: `user:password` without a host. Unlike in `host:port`, the part after the colon is not a number.
_PASSWORD_WITHOUT_HOST = re.compile(r"^([^:/?\[]*):(?!\d*($|[/?]))[^/?]*")
#: `key=value` in the query of a URL, or in a connection string.
_PARAMETER = re.compile(r"(?P<start>^|[?&;\s])(?P<key>\w+)=(?P<value>[^&;\s]*)")


class Secret(str):
    """String that is pickled as None, because the Trainer pickles its arguments into every checkpoint."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return type(None), ()

    # `copy` would otherwise use `__reduce_ex__`, and replace the secret by None.
    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __repr__(self) -> str:
        return repr(MASK)


def is_secret(key: object) -> bool:
    """Return whether any part of a dotted key names a token, an access key, a password or an environment."""
    names = str(key).replace("-", "_").split(".")
    return any(_SECRET_KEY.search(name) and not _SPECIAL_TOKEN_KEY.search(name) for name in names)


def without_secrets(config: Any, *, in_training: bool = False) -> Any:
    """Copy the configuration of a run or a study without its secrets.

    Args:
        config: Plain data of the configuration, or of a part.
        in_training: Whether the data are below `training`.

    Returns:
        Copy without the keys of secrets, and with `***` in place of the password in a storage's URL.
    """
    if isinstance(config, Mapping):
        public = {}
        for key, value in config.items():
            value_in_training = in_training or str(key).partition(".")[0] == _SECRETS_SECTION
            if not (value_in_training and is_secret(key)):
                is_url = key == _URL_KEY and isinstance(value, str)
                public[key] = mask_url(value) if is_url else without_secrets(value, in_training=value_in_training)
        return public
    if isinstance(config, list | tuple):
        return [without_secrets(item, in_training=in_training) for item in config]
    return config


def wrap_secrets(training: Any) -> Any:
    """Copy the content of `training`, with each secret converted to `Secret`."""
    if isinstance(training, Mapping):
        return {
            key: Secret(value) if is_secret(key) and isinstance(value, str) else wrap_secrets(value)
            for key, value in training.items()
        }
    return training


def mask_value(key: object, value: object) -> str:
    """Format a value for a message, or return `***` if the key belongs to a secret or a storage URL."""
    if is_secret(key) or str(key) == _URL_KEY:
        return MASK
    return repr(without_secrets(value, in_training=str(key).partition(".")[0] == _SECRETS_SECTION))


def mask_override(override: str) -> str:
    """Format an override for a message, with `***` for a value that may contain secrets.

    The override may be malformed.
    """
    key = re.split(r"[=:\s]", override, maxsplit=1)[0]
    is_url = key.rpartition(".")[2] == _URL_KEY
    is_masked = is_url or _may_hold_secret(key, override.removeprefix(key))
    return repr(f"{key}={MASK}" if is_masked else override)


def mask_argument(argument: str) -> str:
    """Return an argument of a command line (an override, or the URL of a storage) without secrets."""
    key, equals, value = argument.partition("=")
    if equals and _may_hold_secret(key, value):
        return f"{key}={MASK}"
    return mask_url(argument) if "://" in argument else argument


def _may_hold_secret(key: str, value: str) -> bool:
    """Return whether a key names a secret, or a value below `training` contains such a key: `{hub_token: ...}`."""
    is_in_training = key.partition(".")[0] == _SECRETS_SECTION
    return is_secret(key) or (is_in_training and any(map(is_secret, re.findall(r"[\w.-]+", value))))


def mask_url(url: str) -> str:
    """Return a database URL with `***` for passwords. In a malformed URL, more than the password may be hidden."""
    scheme, separator, rest = url.partition("://")
    if not (separator and _SCHEME.fullmatch(scheme)):
        # In a string that is not a URL, everything after the first separator may belong to a password.
        start = re.split("[:/@]", url, maxsplit=1)[0]
        return _PARAMETER.sub(_mask_parameter, url) if start == url else f"{start}:{MASK}"
    credentials, at, host = rest.rpartition("@")
    if scheme.startswith("sqlite") and rest.startswith("/"):
        # A path has no user and no password.
        pass
    elif at and ":" in credentials:
        rest = f"{credentials.partition(':')[0]}:{MASK}@{host}"
    elif not at:
        rest = _PASSWORD_WITHOUT_HOST.sub(rf"\1:{MASK}", rest)
    return _PARAMETER.sub(_mask_parameter, f"{scheme}://{rest}")


def _mask_parameter(match: re.Match[str]) -> str:
    # The value may be a whole connection string with a password: `odbc_connect=Driver%3D...%3BPWD%3D...`.
    nested_keys = [nested["key"] for nested in _PARAMETER.finditer(unquote_plus(match["value"]))]
    value = MASK if any(map(is_secret, [match["key"], *nested_keys])) else match["value"]
    return f"{match['start']}{match['key']}={value}"
