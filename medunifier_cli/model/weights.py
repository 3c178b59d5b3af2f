"""Find weight files of other projects on this machine: a file, a folder, or the local Hugging Face cache.

Nothing here downloads: a machine without network must behave as one with network does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medunifier_cli.errors import MissingWeightsError

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
    path = Path(source).expanduser()
    if path.exists():
        return local_weights(path, names)
    if is_hub_name(source):
        return require_cached(key, source, names)
    raise MissingWeightsError(f"{key}: {source} is neither a folder, a file nor a hub name")
