"""Files are written by `files.py`: each is whole or absent, and no link that somebody planted is followed."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.house.test_floors import Sources, sources

WRITING = {
    "write_bytes", "tofile", "to_csv", "savetxt", "savez", "savez_compressed", "savefig", "save_file",
    "save_model", "NamedTemporaryFile", "mkstemp", "mkdtemp", "copyfile", "copy2", "copytree", "move",
    "rename", "symlink_to", "hardlink_to", "touch", "open_memmap",
}  # fmt: skip
"""Methods and functions that write or rename in a way of their own."""
PICTURES = ("PNG", "JPEG")
"""Formats of `image.save(file, format)`: with one, what is written to may be a file of `files.py`."""
OWN_SAVE = ("store", "tokenizer", "saver")
"""What has a `save` of ours."""
ALLOWED = {
    ("medunifier_cli/files.py", "replace"): "the writer itself",
    ("medunifier_cli/files.py", "rename"): "the writer itself",
    ("medunifier_cli/files.py", "fdopen 'w+b'"): "the writer itself, of a new file",
    ("medunifier_cli/files.py", "fdopen 'ab'"): "logs grow line by line; a torn last line is cut off",
    ("medunifier_cli/files.py", "fdopen 'r+b'"): "a lock, which has no contents",
    ("medunifier_cli/run/cache.py", "File 'w'"): "HDF5 into a file of `atomic_write`",
    ("medunifier_cli/run/record.py", "rename"): "`--fresh` sets a whole run aside",
    ("medunifier_cli/prepare/write.py", "replace"): "a shard is open for hours, and its receipt is its mark",
    ("medunifier_cli/prepare/prepare.py", "replace"): "open for the whole scan, as a shard",
    ("medunifier_cli/checkpoint/store.py", "save_file"): "into a folder that is renamed when it is whole",
    ("medunifier_cli/checkpoint/store.py", "write_bytes"): "into a folder that is renamed when it is whole",
    ("medunifier_cli/checkpoint/store.py", "rename"): "of that folder",
    ("medunifier_cli/run/deleting.py", "rename"): "of such a folder, before it is deleted",
    ("medunifier_cli/checkpoint/store.py", "touch"): "there, to learn the mode that the umask gives",
    ("medunifier_cli/model/weights.py", "save"): "a command for one file, run by hand; no verb reads it",
    ("medunifier_cli/run/record.py", "replace"): "a damaged provenance is put aside",
}
"""Place and what is called there -> why."""


def mode_of(call: ast.Call, name: str) -> str:
    """The mode of a call that opens a file, if it is written there; empty for others."""
    function = isinstance(call.func, ast.Name) or name in ("fdopen", "File")
    if name not in ("open", "fdopen", "File"):
        return ""
    values = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    values += call.args[1:2] if function else call.args[:1]
    return next(
        (str(v.value) for v in values if isinstance(v, ast.Constant) and isinstance(v.value, str)), ""
    )


def otherwise(files: Sources) -> Iterator[tuple[str, str, int]]:
    """File, call and line wherever something is written in another way than by `files.py`."""
    for path, text in files.items():
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            mode = mode_of(node, name)
            if set(mode) & set("wax+") and set(mode) <= set("rwaxbt+"):
                yield path, f"{name} {mode!r}", node.lineno
            elif name in WRITING or writes_as_method(node, name):
                yield path, name, node.lineno


def writes_as_method(call: ast.Call, name: str) -> bool:
    """Whether a call writes, by a name that other functions have too."""
    if not isinstance(call.func, ast.Attribute):
        return False
    owner = getattr(call.func.value, "id", "")
    if name == "replace":  # of a text it has two arguments, of a dataclass keywords
        return owner == "os" or (len(call.args) == 1 and not call.keywords)
    if name == "save":
        named = len(call.args) > 1 and getattr(call.args[1], "value", "") in PICTURES
        return owner not in OWN_SAVE and not named
    if name in ("dump", "dump_all", "safe_dump"):
        return len(call.args) > 1
    return name == "write_text"


def test_every_file_is_written_by_one_writer() -> None:
    found = [
        line for name in ("medunifier", "medunifier_cli", "plugins") for line in otherwise(sources(name))
    ]
    assert [f"{path}:{line}: {call}" for path, call, line in found if (path, call) not in ALLOWED] == []
    assert set(ALLOWED) == {(path, call) for path, call, _ in found}, (
        "an exception that nobody needs any more"
    )


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'w', encoding='utf-8')",
        "open(path, mode='ab')",
        "path.open('wb')",
        "path.open(mode='x')",
        "os.fdopen(handle, 'w')",
        "h5py.File(path, 'r+')",
        "path.write_text('x')",
        "path.write_bytes(b'x')",
        "os.replace(one, other)",
        "os.rename(one, other)",
        "path.replace(other)",
        "path.rename(other)",
        "image.save(path)",
        "image.save(path, optimize=True)",
        "torch.save(tensors, path)",
        "np.save(path, array)",
        "np.savez(path, array)",
        "array.tofile(path)",
        "table.to_csv(path)",
        "save_file(tensors, path)",
        "json.dump(value, file)",
        "shutil.copyfile(one, other)",
        "tempfile.NamedTemporaryFile()",
    ],
)
def test_a_writer_of_its_own_is_found(line: str) -> None:
    assert list(otherwise({"plugins/x.py": line}))


@pytest.mark.parametrize(
    "line",
    [
        "open(path, 'rb')",
        "path.open()",
        "os.open(path, os.O_RDONLY)",
        "h5py.File(path, 'r', locking=False)",
        "text.replace('a', 'b')",
        "dataclasses.replace(recipe, name='a')",
        "write_text(path, 'x')",
        "image.save(file, 'PNG')",
        "store.save(folder, checkpoint, keep=1)",
        "json.dumps(value)",
        "yaml.safe_dump(value, sort_keys=False)",
        "tarfile.open(path, 'r:gz')",
        "Image.open(path)",
    ],
)
def test_reading_and_our_own_writers_are_not(line: str) -> None:
    assert list(otherwise({"plugins/x.py": line})) == []
