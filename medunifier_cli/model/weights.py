"""Find and read weight files of other projects: a file, a folder, or the local Hugging Face cache.

Nothing here downloads: a machine without network must behave as one with network does. Nothing here unpickles
objects: a checkpoint that holds more than tensors is explained, not run.
"""

from __future__ import annotations

import re
import struct
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import numpy as np

from medunifier_cli.errors import MissingWeightsError, MuError

if TYPE_CHECKING:
    from torch import Tensor, nn

TRANSFORMERS_FILES = ("model.safetensors", "pytorch_model.bin")
"""Weight files of a repository in transformers' layout, in order of preference."""
WEIGHT_FILES = (*TRANSFORMERS_FILES, "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weight files that timm looks for in a repository, in order of preference."""


def local_weights(folder_or_file: Path, names: Sequence[str] = WEIGHT_FILES) -> Path:
    """The weight file that a local folder or file stands for.

    Raises:
        MissingWeightsError: there is none.
    """
    files = [folder_or_file / name for name in names] if folder_or_file.is_dir() else [folder_or_file]
    for file in files:
        if file.is_file():
            return file
    raise MissingWeightsError(f"{folder_or_file}: holds none of {', '.join(names)}")


def existing_path(source: str) -> Path | None:
    """The file or folder of that name; None if there is none, or no file can have the name."""
    try:
        path = Path(source).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long; `~` of nobody; a zero byte
        return None


def is_hub_name(source: str) -> bool:
    """Whether `source` is spelt like a repository of the hub, `organisation/model`, and not like a path."""
    return source.count("/") == 1 and not source.startswith((".", "~", "/"))


def cached_file(repository: str, names: Sequence[str] = WEIGHT_FILES) -> Path | None:
    """The first of `names` that the local cache holds of a hub repository; None if it holds none of them."""
    from huggingface_hub import try_to_load_from_cache

    for name in names:
        path = try_to_load_from_cache(repository, name)
        if isinstance(path, str):  # otherwise None, or a marker that the repository is known to lack the file
            return Path(path)
    return None


def require_cached(key: str, repository: str, names: Sequence[str] = WEIGHT_FILES) -> Path:
    """As `cached_file`.

    Args:
        key: recipe key that names the repository, for the message.

    Raises:
        MissingWeightsError: the cache holds none of `names`; the message gives the command that fetches them.
    """
    path = cached_file(repository, names)
    if path is None:
        from huggingface_hub import constants

        raise MissingWeightsError(
            f"{key}: {repository} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}); on a machine "
            f"with network fetch it with `hf download {repository}`, or name a local folder"
        )
    return path


def weights_path(key: str, source: str, names: Sequence[str] = WEIGHT_FILES) -> Path:
    """The weight file of a local file or folder, or of a hub repository in the local cache.

    Args:
        key: recipe key that holds `source`, for the message.
        source: a path takes precedence over a hub name.

    Raises:
        MissingWeightsError: it is none of these; the message says how to get it.
    """
    path = existing_path(source)
    if path is not None:
        return local_weights(path, names)
    if is_hub_name(source):
        return require_cached(key, source, names)
    raise MissingWeightsError(f"{key}: {source} is neither a folder, a file nor a hub name")


LONGEST_NAME = 300
"""Characters of a tensor's name; the longest of a known model has 120."""
SMALL_BYTES = 64 << 20
"""Bytes that a tensor may take in memory though the file holds fewer, as for masks that repeat one row."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Where trainers put the weights among other things: Lightning, many scripts, LAVIS, DeepSpeed."""
RUNS_CODE = {"builtins", "__builtin__", "importlib", "nt", "os", "posix", "runpy", "subprocess", "sys"}
"""Modules whose functions no checkpoint needs: a file that names one would run a command when loaded."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a weight file, wherever its trainer put them in it; nothing in the file is run.

    Raises:
        MuError: the file is damaged, is a pointer or a page instead of weights, or holds what only unpickling
            could load; says what it holds and how to save the tensors alone.
    """
    import torch

    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_unpacked_size(path)
        with harmless_globals(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of old formats and odd pickles: they are read, or it is an error
            content = torch.load(path, map_location="cpu", weights_only=True)
    except unreadable_errors() as error:
        raise MuError(why_unreadable(path, error)) from error
    return _tensors_in(content, path)


@contextmanager
def without_drawing() -> Iterator[None]:
    """While open, parameters of new modules are on the meta device: no random number is drawn for them, and
    they take no memory, until `load_state_dict` assigns values. Buffers have theirs: no file holds the
    constants among them.
    """
    from torch import nn
    from torch.nn.modules.module import register_module_parameter_registration_hook

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
        if module._parameters.get(name) is not None:
            return parameter  # that is assigned in the place of an empty one
        return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)

    # annotated as one that returns nothing, while what it returns is registered
    hook = register_module_parameter_registration_hook(emptied)  # type: ignore[arg-type]
    try:
        yield
    finally:
        hook.remove()


def fitting(module: nn.Module, tensors: Mapping[str, Tensor], copy: bool = True) -> dict[str, Tensor]:
    """Tensors in the types of a module's own, for `load_state_dict` to assign: copying would convert them.

    Args:
        module: may be without values.
        tensors: by the module's names; what has no such name is left as it is.
        copy: False takes tensors of the right type as they are. Those of a mapped file change with it.
    """
    own = module.state_dict()
    return {
        name: tensor.to(own[name].dtype, copy=copy).contiguous() if name in own else tensor
        for name, tensor in tensors.items()
    }


def unreadable_errors() -> tuple[type[Exception], ...]:
    """What readers of weight files raise; a damaged pickle can raise whatever its instructions lead to."""
    from safetensors import SafetensorError

    of_pickles = (LookupError, ValueError, TypeError, AttributeError, AssertionError, ArithmeticError)
    return (
        SafetensorError, UnpicklingError, EOFError, RuntimeError, struct.error, MemoryError, OSError,
        *of_pickles,
    )  # fmt: skip


def _check_unpacked_size(path: Path) -> None:
    """Raises MuError for a file whose parts are packed: torch never packs them, and they may be huge."""
    unpacked = 0
    with suppress(zipfile.BadZipFile, *unreadable_errors()):  # torch says what is wrong with it
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(part.file_size for part in archive.infolist())
    if unpacked > path.stat().st_size:
        raise MuError(f"{path}: packed, which no file of weights is; unpack it first")


def harmless_globals() -> AbstractContextManager[None]:
    """While open, torch's reader of tensors also takes numpy's numbers and arrays, such as a best score."""
    import torch

    scalar, rebuild = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    allowed: list[Any] = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdg"}]
    # numpy 2 renamed the module that a pickle names, and files of both kinds are in use
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(scalar, f"{module}.scalar"), (rebuild, f"{module}._reconstruct")]
    context: AbstractContextManager[None] = torch.serialization.safe_globals(allowed)
    return context


def why_unreadable(path: Path, error: Exception) -> str:
    """One line: why a weight file cannot be read, and what to do."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"version https://git-lfs"):
        return f"{path}: a Git LFS pointer instead of the weights; run `git lfs pull` where it was cloned"
    if start.startswith((b"<", b"{")):
        return f"{path}: a page of text instead of the weights; fetch the file itself"
    names = _foreign_globals(path, error)
    if not names:
        return f"{path}: damaged, or not a file of weights; fetch it again"
    if any(name.split(".")[0] in RUNS_CODE for name in names):
        return f"{path}: would run {_listed(names)} when loaded; delete it and fetch the weights elsewhere"
    return (
        f"{path}: holds more than tensors ({_listed(names, 2)}), which mu does not unpickle; if you trust "
        "it, `python -m medunifier_cli.model.weights FILE` saves its tensors alone"
    )


def _foreign_globals(path: Path, error: Exception) -> list[str]:
    """Classes and functions that a pickle names and that torch refuses, sorted."""
    import torch

    # found without loading; in torch's older format, which is no zip file, only the error names the first
    with harmless_globals(), suppress(Exception):
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    named = re.search(r"GLOBAL ([\w.]+) ", str(error))
    return [named[1]] if named else []


def _tensors_in(content: Any, path: Path) -> dict[str, Tensor]:

    inner = content
    while isinstance(inner, Mapping):
        wrapped = [inner[key] for key in WRAPPERS if isinstance(inner.get(key), Mapping)]
        if not wrapped:
            break
        inner = wrapped[0]
    if isinstance(inner, Mapping):
        tensors = {name: value for name, value in inner.items() if _is_named_tensor(name, value)}
        if tensors:
            return tensors
        what = _listed([_shown(name, value) for name, value in inner.items()]) or "nothing"
    else:
        size = f" of {len(inner)} items" if hasattr(inner, "__len__") else ""
        what = f"a {type(inner).__name__}{size}"
    raise MuError(
        f"{path}: holds {what}, no tensors by name; save them with torch.save(model.state_dict(), FILE)"
    )


def _is_named_tensor(name: object, value: object) -> bool:
    """Whether an item is a name and a tensor of ordinary numbers, as large as its bytes in the file."""
    import torch

    if not isinstance(name, str) or len(name) > LONGEST_NAME or not isinstance(value, torch.Tensor):
        return False
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_complex():
        return False
    # one number may stand for billions, by a stride of zero: to copy such a tensor fills the memory
    size = value.numel() * value.element_size()
    return size <= max(value.untyped_storage().nbytes(), SMALL_BYTES)


def _shown(name: object, value: object) -> str:
    return f"{name[:LONGEST_NAME] if isinstance(name, str) else type(name).__name__} ({type(value).__name__})"


def _listed(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def main() -> None:
    """`python -m medunifier_cli.model.weights FILE`: unpickle a file that is trusted, and save its tensors.

    For checkpoints that hold objects besides; this runs whatever code they name, which `mu` itself never
    does. Writes `tensors.pth` to the current folder.
    """
    import torch

    path, out = Path(sys.argv[1]), Path("tensors.pth")
    content = torch.load(path, map_location="cpu", weights_only=False)
    tensors = _tensors_in(content.state_dict() if isinstance(content, torch.nn.Module) else content, path)
    torch.save(tensors, out)
    print(f"{out}: {len(tensors):,} tensors")


if __name__ == "__main__":
    main()
