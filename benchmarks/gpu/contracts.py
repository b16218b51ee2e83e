"""The promises of an adapted model, on the device: a few direct checks, then the contract tests themselves.

Direct checks first, as they need seconds: step 0 bit for bit in three dtypes, a saved adapter, compiled code without a
graph break, nf4 where bitsandbytes is installed. The tests are those of `tests/contracts/test_adapted_model.py`, with
`AILORA_TEST_DEVICE`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from part import PartArguments, Recorder, parse_arguments
from peft import PeftModel
from torch import nn

import ailora

ROOT = Path(__file__).resolve().parents[2]
TESTS = "tests/contracts/test_adapted_model.py"
#: Tests of a rehearsal.
TINY_SELECTION = "llama and (formula or stock_form_is_the_file)"
RANK = 4


def start_is_exact(family: Any, dtype: torch.dtype) -> None:
    """The adapted model equals its base bit for bit before the first step."""
    base = family.model().to(dtype)
    expected = family.output(base)
    adapted = ailora.adapt(base, rank=RANK, roles=["query", "key", "value", "output", "gate", "up", "down"])
    assert torch.equal(family.output(adapted.eval()), expected)


def saved_adapter_loads(family: Any, train: Callable[..., Any]) -> None:
    """A trained and saved adapter computes alike in stock PEFT, and the base alone is as before."""
    adapted = ailora.adapt(family.model(), rank=RANK)
    train(adapted, family)
    with tempfile.TemporaryDirectory() as folder:
        ailora.save_adapter(adapted, folder)
        loaded = PeftModel.from_pretrained(family.model(), folder).eval()
        assert_close(family.output(loaded), family.output(adapted), 1e-5)
    with adapted.disable_adapter():
        assert torch.equal(family.output(adapted), family.output(family.model()))


def compiles_without_graph_break(family: Any, backend: str) -> None:
    """`torch.compile` takes forward and backward whole; the loss is that of uncompiled code."""
    adapted = ailora.adapt(family.model(), rank=RANK).train()
    expected = family.loss(adapted)
    compiled = torch.compile(adapted, fullgraph=True, backend=backend)
    loss = family.loss(compiled)
    loss.backward()
    assert_close(loss.detach(), expected.detach(), 1e-4)


def nf4_start_is_exact(device: str) -> None:
    """Step 0 on a base of 4-bit weights, which stay as they are."""
    from bitsandbytes.nn.modules import Linear4bit
    from tests.quantized import original

    model = original().to("cpu")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            parent, _, leaf = name.rpartition(".")
            packed = Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4")
            packed.load_state_dict({"weight": layer.weight.data})
            setattr(model.get_submodule(parent), leaf, packed)
    model = model.to(device).eval()
    ids = torch.randint(5, 64, (2, 6), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert torch.equal(ailora.adapt(model, rank=RANK).eval()(input_ids=ids).logits, expected)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    distance = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1))
    assert distance <= tolerance, f"{distance:.1e} apart, relative to the largest value; allowed {tolerance:.0e}"


def run_checks(arguments: PartArguments) -> None:
    """Run the direct checks, each recorded as `passed`, `failed` or `skipped` with its reason."""
    from tests.families import FAMILIES, train

    family = FAMILIES["llama"]
    checks: dict[str, Callable[[], None]] = {
        f"step 0 in {str(dtype).removeprefix('torch.')}": lambda dtype=dtype: start_is_exact(family, dtype)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    checks["save and load"] = lambda: saved_adapter_loads(family, train)
    # The default compiler needs a C++ one on a CPU.
    backend = "inductor" if arguments.device == "cuda" else "aot_eager"
    checks[f"compile ({backend})"] = lambda: compiles_without_graph_break(family, backend)
    if importlib.util.find_spec("bitsandbytes") is not None:
        checks["nf4"] = lambda: nf4_start_is_exact(arguments.device)
    else:
        arguments.recorder.write("nf4", {"outcome": "skipped"}, "nf4: skipped, bitsandbytes is not installed")
    for name, check in checks.items():
        outcome, reason = "passed", None
        try:
            check()
        except Exception as failure:
            outcome, reason = "failed", f"{type(failure).__name__}: {failure}"
            traceback.print_exc()
        arguments.recorder.write(name, {"outcome": outcome, "reason": reason}, f"{name}: {outcome}")


class OutcomeRecorder:
    """Plugin of pytest that records every failure at once, and the counts at the end.

    Args:
        recorder: For the results.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.outcomes: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count the outcome of a test; a failure before or after its body counts, too."""
        if report.when != "call" and report.outcome == "passed":
            return
        self.outcomes[report.outcome] += 1
        if report.outcome == "failed":
            name = report.nodeid.partition("::")[2]
            self.recorder.write(name, {"outcome": "failed", "reason": str(report.longrepr)[-3000:]}, f"FAILED {name}")

    def pytest_sessionfinish(self) -> None:
        """Record the counts."""
        counts = dict(self.outcomes)
        words = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "none"
        self.recorder.write("contract tests", {"file": TESTS, "outcomes": counts}, f"contract tests: {words}")


def main(arguments: PartArguments) -> None:
    os.environ["AILORA_TEST_DEVICE"] = arguments.device
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    run_checks(arguments)
    # Warnings of other versions of the libraries than the tested ones are no failures here.
    options = ["-q", "-p", "no:cacheprovider", "--no-header", "-o", "filterwarnings=default", "--disable-warnings"]
    if arguments.tiny:
        options += ["-k", TINY_SELECTION]
    elif importlib.util.find_spec("xdist") is not None:
        options += ["-n", str(min(8, os.cpu_count() or 1))]
    pytest.main([TESTS, *options], plugins=[OutcomeRecorder(arguments.recorder)])


if __name__ == "__main__":
    main(parse_arguments("contracts"))
