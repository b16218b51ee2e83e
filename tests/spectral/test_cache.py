"""The cache: what it serves is what would have been computed."""

from __future__ import annotations

import multiprocessing
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import ailora
from ailora import Band, Triplets
from ailora.spectral import SpectralCache, cached_svd, without_cache
from ailora.spectral import svd_cache as cache_module


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SpectralCache:
    """An empty cache that `cached_svd` uses, for weights of any size."""
    monkeypatch.setenv("AILORA_CACHE", str(tmp_path))
    monkeypatch.setattr(cache_module, "_MIN_CACHED_SIDE", 1)
    return SpectralCache()


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(80, 70, generator=torch.Generator().manual_seed(seed))


def equal(first: Triplets, second: Triplets) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_parts(first), _parts(second), strict=True))


def _parts(triplets: Triplets) -> tuple[torch.Tensor, ...]:
    return triplets.U, triplets.S, triplets.Vh


def fail(*_: object, **__: object) -> None:
    raise AssertionError("decomposed again")


@pytest.mark.parametrize("band", Band)
def test_a_second_call_reads_and_equals_a_call_without_cache(
    cache: SpectralCache, monkeypatch: pytest.MonkeyPatch, band: Band
) -> None:
    first = cached_svd(weight(), 5, band)
    with without_cache():
        assert equal(cached_svd(weight(), 5, band), first)
    monkeypatch.setattr(cache_module, "truncated_svd", fail)
    assert equal(cached_svd(weight(), 5, band), first)
    # A smaller rank of the same step is a part of what is kept.
    smaller = cached_svd(weight(), 3, band)
    rows = slice(0, 3) if band is Band.PRINCIPAL else slice(2, 5)
    assert torch.equal(smaller.S, first.S[rows])
    assert smaller.certificate is not None
    assert first.certificate is not None
    assert smaller.certificate.residual == first.certificate.residual


def test_results_do_not_depend_on_what_was_kept_before(cache: SpectralCache) -> None:
    alone = cached_svd(weight(), 4, "minor")
    cache.clear()
    cached_svd(weight(), 40, "minor")
    assert equal(cached_svd(weight(), 4, "minor"), alone)


def test_another_weight_band_or_dtype_is_another_entry(cache: SpectralCache) -> None:
    changed = weight()
    changed[0, 0] += 1e-6
    for made in (weight(), changed, weight().double(), weight().bfloat16(), weight().mT):
        cached_svd(made, 4, "minor")
    cached_svd(weight(), 4, "principal")
    assert len(cache.entries()) == 6


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other file", "empty", "no metadata"])
def test_a_damaged_entry_is_noticed_and_made_again(cache: SpectralCache, damage: str) -> None:
    first = cached_svd(weight(), 4, "minor")
    (file, size, _), *_ = cache.entries()
    content = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(content[: size // 2])
    elif damage == "flipped":
        content[-5] ^= 0x40
        file.write_bytes(content)
    elif damage == "no metadata":
        save_file(load_file(file), file)
    else:
        file.write_bytes(b"" if damage == "empty" else b"no safetensors at all")
    assert equal(cached_svd(weight(), 4, "minor"), first)
    assert cache.read(file.stem) is not None


def test_the_entries_unused_for_longest_go_first(cache: SpectralCache, tmp_path: Path) -> None:
    for seed in range(3):
        cached_svd(weight(seed), 4, "minor")
    for age, (file, _, _) in enumerate(reversed(cache.entries())):
        os.utime(file, (1000 - age, 1000 - age))
    oldest, middle, newest = (file for file, _, _ in cache.entries())
    assert cache.read(oldest.stem) is not None  # used now, so the middle one is next to go
    size = newest.stat().st_size
    small = SpectralCache(tmp_path, limit_bytes=2 * size)
    kept = small.read(newest.stem)
    assert kept is not None
    small.write(newest.stem, kept)
    assert {file for file, _, _ in cache.entries()} == {oldest, newest}
    assert middle not in {file for file, _, _ in cache.entries()}


def test_files_that_are_no_entries_are_never_removed(cache: SpectralCache, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    cached_svd(weight(), 4, "minor")
    (file, size, _), *others = cache.entries()
    assert not others
    assert stat.S_IMODE(file.stat().st_mode) & 0o044
    kept = cache.read(file.stem)
    assert kept is not None
    SpectralCache(tmp_path, limit_bytes=size - 1).write(file.stem, kept)
    assert cache.clear() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_cache_that_cannot_be_written_to_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AILORA_CACHE", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(cache_module, "_MIN_CACHED_SIDE", 1)
    assert cached_svd(weight(), 4, "minor").certificate is not None


def _work(folder: str, seed: int) -> None:
    os.environ["AILORA_CACHE"] = folder
    cache_module._MIN_CACHED_SIDE = 1
    torch.set_num_threads(1)
    for _ in range(5):
        for other in range(3):
            made = cached_svd(weight(other), 4, "minor")
            assert made.certificate is not None
        if seed == 0:
            SpectralCache().clear()


@pytest.mark.ci
def test_processes_share_it(tmp_path: Path) -> None:
    """Three processes read, write and clear the same entries; none fails, and what is left is whole."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(str(tmp_path), seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache = SpectralCache(tmp_path)
    assert all(cache.read(file.stem) is not None for file, _, _ in cache.entries())
    assert not list(tmp_path.glob("*.tmp"))


def test_small_weights_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AILORA_CACHE", str(tmp_path))
    cached_svd(weight(), 4, "minor")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("home", ["known", "unknown"])
def test_a_tilde_in_the_folder_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if home == "unknown":
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setenv("AILORA_CACHE", "~/cache")
    assert SpectralCache().folder == (tmp_path / "cache" if home == "known" else Path("~/cache"))
    monkeypatch.delenv("AILORA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    root = tmp_path if home == "known" else Path("~")
    assert SpectralCache().folder == root / ".cache" / "ailora" / "spectral"


def test_what_is_no_matrix_is_refused_before_its_key_is_computed(cache: SpectralCache) -> None:
    for wrong in (torch.ones(8, 6, device="meta"), torch.ones(8), [[1.0]]):
        with pytest.raises(ailora.InputError, match="expected a"):
            cached_svd(wrong, 2, "minor")  # type: ignore[arg-type]
