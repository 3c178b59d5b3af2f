"""The tokenizer of a pre-training run: learned or loaded at its first start, and kept in its folder."""

from __future__ import annotations

from pathlib import Path

from medunifier_cli.checkpoint import store
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.token_table import texts_of
from medunifier_cli.data.texts.tokenizer import CONFIG, FINGERPRINT, MEND, VOCABULARY, TextTokenizer
from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import Facts, agree, together
from medunifier_cli.errors import CheckpointError, DataError
from medunifier_cli.files import sha256
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run


def tokenizer_of(recipe: PretrainRecipe, run: Run) -> TextTokenizer:
    """The run's tokenizer: learned or loaded at the first start, and read from the run's folder ever after.

    A tokenizer learned again on changed shards, or updated in the hub's cache, would number words anew.
    """
    together(lambda: _first_tokenizer(recipe, run))

    def load() -> tuple[TextTokenizer, Facts]:
        return TextTokenizer.load(str(run.tokenizer)), {
            "the tokenizer": {path.name: sha256(path)[:12] for path in sorted(run.tokenizer.iterdir())}
        }

    return agree(load)


def _first_tokenizer(recipe: PretrainRecipe, run: Run) -> None:
    """Write the run's tokenizer on the main rank, unless it is there."""
    if not world.is_main() or has_tokenizer(run):
        return
    if recipe.text.tokenizer == "train":
        plugin = prepared_dataset(recipe.data.dataset, recipe.data.shards)
        shards = Shards.open(split_folder(recipe), recipe.data.train)
        sections = recipe.data.sections or plugin.text_sections
        texts = texts_of(shards, sections, recipe.data, recipe.text)
        try:
            tokenizer = TextTokenizer.train(texts, recipe.text.vocabulary)
        except DataError as error:
            where = f"{shards.folder}, {recipe.data.train}, data.sections={','.join(sections)}"
            raise DataError(f"{where}: {error}") from error
        tokenizer.save(run.tokenizer, shards.folder)
    else:
        tokenizer = TextTokenizer.load(recipe.text.tokenizer)
        tokenizer.save(run.tokenizer)


def has_tokenizer(run: Run) -> bool:
    """Whether a run has its tokenizer; what a killed process of an earlier version left of one is none.

    Raises:
        CheckpointError: part of it has been lost since.
    """
    lost = [name for name in (VOCABULARY, CONFIG) if not (run.tokenizer / name).exists()]
    if not lost or (run.tokenizer / FINGERPRINT).exists():
        return True  # `load` verifies it
    if len(lost) == 1 and store.steps(run.checkpoints):
        raise CheckpointError(f"{run.tokenizer / lost[0]}: missing; {MEND}")
    return False


def split_folder(recipe: PretrainRecipe) -> Path:
    """Folder of the recipe's shards."""
    return Path(recipe.data.shards) if recipe.data.shards else shards_folder(recipe.data.dataset)
