"""`mu`, `python`, `pip` and `sbatch` as a block of bash finds them on PATH, in a world where all is small.

`mu` and `python` ask this process, which lets `tests/warm.py` fork one that has all imports behind it. There
the shipped recipes are the miniatures of `world.py`, and data sets have few images; a command that only
prints a job script has the real recipes. `pip install` announces the entry points of the folder's
pyproject.toml, `python3 -m venv` makes an empty `activate`, and `sbatch` lets bash read the script.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests import warm

ASK = """\
#!{python} -IS
import json, os, socket, sys
ask = socket.socket(socket.AF_UNIX)
ask.connect({address!r})
words = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
ask.sendall(json.dumps({{"words": words, "env": dict(os.environ), "cwd": os.getcwd()}}).encode() + b"\\n")
said = json.loads(ask.makefile().read())
sys.stdout.write(said["out"]), sys.stderr.write(said["err"]), sys.exit(said["code"])
"""
SBATCH = """\
#!/bin/bash
set -e
for last; do :; done
if [ -f "$last" ]; then script=$(cat "$last"); else script=$(cat); fi
[[ $script == *"#SBATCH"* ]] && bash -n <<< "$script" && echo "Submitted batch job 4711"
"""
BEGIN = """\
import os, sys
for folder in filter(None, os.environ.get("MU_PLUGINS", "").split(":")):
    sys.path.insert(0, folder)
"""
SMALL = """\
from medunifier_cli.data.contract import Option
from medunifier_cli.recipe import load
from medunifier_plugins.mimic_cxr.dataset import MimicCxr
from medunifier_plugins.phantom.dataset import Phantom
sys.path.insert(0, {recipes!r})
load.SHIPPED = "small_recipes"
few = {{"train": 24, "valid": 12, "test": 16, "per_class": 1}}
for plugin in (Phantom, MimicCxr):
    known = plugin.options.items()
    plugin.options = {{key: Option(few.get(key, o.default), o.help, o.choices) for key, o in known}}
"""
MU = "from medunifier_cli.__main__ import main\nsys.argv[0] = {mu!r}\nmain()\n"
PYTHON = "import runpy\nsys.path.insert(0, os.getcwd())\n{call}\n"


class StandIns:
    """A folder of programs to be put first on PATH."""

    def __init__(self, folder: Path, recipes: Path) -> None:
        self.folder, self.recipes = folder, recipes
        self.plugins: list[str] = []

    def environment(self, roots: Mapping[str, str]) -> dict[str, str]:
        """Variables of a shell that finds the programs, and data and runs where `roots` says, if it does."""
        env = {key: value for key, value in os.environ.items() if not key.startswith("MU_")}
        env |= {"PATH": f"{self.folder}:/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        return env | {key: value for key, value in roots.items() if value}

    def answer(self, words: list[str], env: dict[str, str], cwd: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a call."""
        name, *rest = words
        if name == "pip":
            return self._pip(rest, Path(cwd))
        if rest[:2] == ["-m", "venv"]:
            folder = Path(cwd, rest[2], "bin")
            folder.mkdir(parents=True)
            (folder / "activate").touch()
            return 0, "", ""
        code = BEGIN
        if "--sbatch" not in rest:
            code += SMALL.format(recipes=str(self.recipes))
        if name == "mu":
            code += MU.format(mu=str(self.folder / "mu"))
        elif rest[0] == "-m":
            rest = rest[1:]
            code += PYTHON.format(call=f"runpy.run_module({rest[0]!r}, run_name='__main__', alter_sys=True)")
        else:
            code += PYTHON.format(
                call=f"sys.argv = {rest!r}\nrunpy.run_path({rest[0]!r}, run_name='__main__')"
            )
        known = {**env, "MU_PLUGINS": ":".join(self.plugins)}
        done = warm.run(["-c", code, *rest], env=known, cwd=Path(cwd), timeout=500)
        return done.returncode, done.stdout, done.stderr

    def _pip(self, words: list[str], cwd: Path) -> tuple[int, str, str]:
        """`pip install -e .` of a plugin's folder; any other is believed."""
        if words == ["install", "-e", "."]:
            text = (cwd / "pyproject.toml").read_text(encoding="utf-8")
            project = _toml(text)
            info = cwd / f"{project['project']['name']}-1.0.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
            lines = []
            for group, entries in project["project"]["entry-points"].items():
                lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
            (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
            modules = project["tool"]["setuptools"]["py-modules"]
            missing = [name for name in modules if not (cwd / f"{name}.py").is_file()]
            if missing:
                return 1, "", f"no such module: {missing}"
            self.plugins.append(str(cwd))
        return 0, "", ""


def _toml(text: str) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    # Python 3.10 has it in pip alone
    name = "tomllib" if sys.version_info >= (3, 11) else "pip._vendor.tomli"
    return importlib.import_module(name).loads(text)  # type: ignore[no-any-return]


@contextlib.contextmanager
def stand_ins(folder: Path, recipes: Path) -> Iterator[StandIns]:
    """Write the programs to `folder` and answer them until the end of the block."""
    folder.mkdir()
    made = StandIns(folder, recipes)
    # the path of a socket may have some 100 characters, and a test's folder is longer
    with tempfile.TemporaryDirectory(prefix="docs-") as short:
        address = f"{short}/socket"

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                ask = json.loads(self.rfile.readline())
                code, out, err = made.answer(ask["words"], ask["env"], ask["cwd"])
                self.wfile.write(json.dumps({"code": code, "out": out, "err": err}).encode())

        for name in ("mu", "python", "python3", "pip"):
            (folder / name).write_text(ASK.format(python=sys.executable, address=address))
        (folder / "sbatch").write_text(SBATCH)
        for path in folder.iterdir():
            path.chmod(0o755)
        with socketserver.UnixStreamServer(address, Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            try:
                yield made
            finally:
                server.shutdown()


def bash(
    code: str, folder: Path, programs: StandIns, roots: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a block as a shell does that stops at the first line which fails."""
    words = ["bash", "-c", f"set -euo pipefail\n{code}"]
    env = programs.environment(roots or {})
    return subprocess.run(
        words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=550
    )
