"""What a verb imports: packages that take seconds only where the verb computes with them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.file_map import ROOT

HEAVY = (
    "torch", "torchvision", "timm", "transformers", "accelerate", "tokenizers", "pandas", "pyarrow",
    "sklearn", "scipy", "matplotlib",
)  # fmt: skip
SCRIPT = f"""
import sys
from medunifier_cli.cli import mu
try:
    mu(sys.argv[1:], prog_name="mu", standalone_mode=False)
except (SystemExit, Exception) as error:
    print(type(error).__name__)
print("imported", [name for name in {HEAVY!r} if name in sys.modules])
"""


def mu(home: Path, *arguments: str) -> tuple[str, str]:
    """Run a verb in a process of its own: (what it printed, the heavy packages in it)."""
    environment = {
        **os.environ, "MU_DATA": str(home / "data"), "MU_RUNS": str(home / "runs"), "OMP_NUM_THREADS": "1",
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8", check=True,
    )  # fmt: skip
    printed, _, imported = done.stdout.rpartition("imported ")
    return printed + done.stderr, imported.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of reports and of outputs, and a run with a result; a Java that runs no METEOR."""
    home = tmp_path_factory.mktemp("home")
    java = home / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    java.chmod(0o755)
    reports = [
        {"key": f"a{i}", "reference": f"No focal consolidation {i}.", "hypothesis": f"Clear lungs {i}."}
        for i in range(4)
    ]
    for name in ("reports", "others"):
        (home / f"{name}.jsonl").write_text("\n".join(map(json.dumps, reports)), encoding="utf-8")
    outputs = [
        {"key": f"a{i}", "class": "ab"[i % 2], "probabilities": {"a": 0.9 - 0.1 * i, "b": 0.1 + 0.1 * i}}
        for i in range(6)
    ]
    (home / "outputs.jsonl").write_text("\n".join(map(json.dumps, outputs)), encoding="utf-8")
    results = home / "runs/small/results"
    results.mkdir(parents=True)
    result = {
        "task": "retrieval", "dataset": "phantom", "split": "test", "n": 40,
        "metrics": [{"name": "image to text, map@1", "value": 0.5}],
    }  # fmt: skip
    (results / "retrieval-phantom-test.json").write_text(json.dumps(result), encoding="utf-8")
    return home


def test_prepare_imports_nothing_that_trains(home: Path) -> None:
    printed, imported = mu(
        home, "prepare", "phantom", "-o", "train=8", "-o", "valid=4", "-o", "test=4", "--size", "32",
        "--workers", "1",
    )  # fmt: skip
    assert "16 images" in printed
    assert imported == "[]"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["prepare", "--list"], "phantom"),
        (["prepare", "no-such-data"], "no-such-data"),
        (["score", "--reports", "reports.jsonl"], "BLEU"),
        (["score", "reports.jsonl", "others.jsonl"], "BLEU"),
        (["score", "--outputs", "outputs.jsonl"], "accuracy"),
        (["score", "small", "--rows"], "map@1"),
        (["score", "small", "--tables"], ""),
        (["score", "no-such-run"], "no-such-run"),
        (["pretrain", "no-such-recipe"], "no-such-recipe"),
    ],
)  # fmt: skip
def test_verbs_without_a_model_import_no_torch(home: Path, arguments: list[str], expected: str) -> None:
    named = [str(home / one) if one.endswith(".jsonl") else one for one in arguments]
    printed, imported = mu(home, *named)
    assert expected in printed
    assert imported == "[]", printed


def test_import_medunifier_imports_no_model() -> None:
    """Neither the package nor what an editor lists of it; a mistake in a name is one of Python's own."""
    script = (
        "import sys, medunifier\n"
        "assert {'load', 'MuError', 'Codes'} < set(dir(medunifier))\n"
        "assert medunifier.Codes.__name__ == 'Codes' and not hasattr(medunifier, 'laod')\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_opening_shards_and_their_loader_imports_no_model() -> None:
    """Loader processes that are spawned import these modules anew, each of them."""
    script = (
        "import sys, medunifier_cli.data.loader, medunifier_cli.data.workers\n"
        f"print([name for name in {HEAVY[1:]!r} if name in sys.modules and name != 'tokenizers'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
