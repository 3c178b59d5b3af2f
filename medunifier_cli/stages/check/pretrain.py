"""Check that everything a pre-training recipe needs is in place, without a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from medunifier_cli.data.loader import micro_batch_size
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.texts.token_table import sections_there, texts_of
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import DataError
from medunifier_cli.model.weights import TRANSFORMERS_FILES, weights_path
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.stages.check.shared import (
    Check,
    check_batch,
    check_compiler,
    check_device,
    check_features,
    check_image_encoder,
    check_image_size,
    check_runs_folder,
    check_split,
    run_check,
    shards_of,
)

TEXTS_READ = 2000
"""Samples of a split whose texts are counted: each costs a read, which takes seconds on a network disk."""


def check_pretrain(recipe: PretrainRecipe, processes: int = 0, hashes: bool = False) -> Iterator[Check]:
    """Check everything the recipe needs, in the order a run would need it; downloads and trains nothing.

    Args:
        processes: ranks; 0 for the recipe's number.
        hashes: read every shard and compare its SHA-256.
    """
    data = recipe.data
    folder = shards_of(data.dataset, data.shards)
    images: dict[str, int] = {}
    yield from run_check("data set", check_dataset, recipe)
    splits = dict.fromkeys(filter(None, (data.train, data.valid, data.test)))
    if folder.is_dir():
        for split in splits:
            checks = list(run_check(f"shards of {split}", check_split, folder, split, hashes))
            yield from checks
            if not all(check.ok for check in checks):
                continue  # it would be told twice
            images[split] = count_images(folder, split)
        if images:
            yield from run_check("texts", check_texts, recipe, images)
        yield from run_check("image size", check_image_size, data.dataset, data.image_size, folder)
    else:
        yield Check("shards", f"{folder}: no such folder; run `mu prepare {data.dataset}`", False)
    yield from run_check("tokenizer", check_tokenizer, recipe)
    yield from run_check("image encoder weights", check_image_encoder, recipe)
    yield from run_check("text encoder weights", check_text_encoder, recipe)
    model = list(run_check("model", check_model, recipe))
    batch = list(run_check("batch", check_contrast_batch, recipe, processes or recipe.train.processes))
    yield from (*model, *batch)
    if all(check.ok for check in (*model, *batch)):  # else it would be told twice
        if recipe.model.vit.frozen and images.keys() == splits.keys():
            yield from run_check("cached features", check_features, recipe, hashes)
        from medunifier_cli.stages.check.size import check_sizes

        yield from check_sizes(recipe, processes or recipe.train.processes, images)
    yield from run_check("precision", check_device, recipe.train)
    yield from run_check("compiled", check_compiler, recipe.train, recipe.train.compile)
    yield from run_check("runs folder", check_runs_folder)


def check_dataset(recipe: PretrainRecipe) -> str:
    """Check that there is a plugin for the data set."""
    plugin = prepared_dataset(recipe.data.dataset, recipe.data.shards)
    sections = ", ".join(recipe.data.sections or plugin.text_sections)
    return f"{plugin.title}; text: {sections}"


def count_images(folder: Path, split: str) -> int:
    """Samples of a split that is in order, those without text included."""
    with closing(Shards.open(folder, split)) as shards:
        return len(shards)


def check_texts(recipe: PretrainRecipe, splits: Iterable[str]) -> str:
    """Check that each split has text in the recipe's sections; counts samples that do, see `TEXTS_READ`.

    Raises:
        DataError: a split has none; the message names the sections that are there.
    """
    data = recipe.data
    sections = data.sections or prepared_dataset(data.dataset, data.shards).text_sections
    told, without, there = [], [], ""
    for split in splits:
        with closing(Shards.open(shards_of(data.dataset, data.shards), split)) as shards:
            looked_at = min(TEXTS_READ, len(shards))
            texts = texts_of(shards, sections, data, recipe.text)
            count = sum(map(bool, islice(texts, looked_at)))
            # the first ones may be the exception, and one that has text is enough
            if not count and not any(texts):
                without.append(repr(split))
                there = there or ("" if _no_text(shards) else sections_there(shards))
            of = "" if looked_at == len(shards) else f" of the first {looked_at:,}"
            told.append(f"{split} {count:,}{of or f' of {len(shards):,}'}")
    if without and not there and len(without) == len(told):
        raise DataError("this data set has no texts, which `mu pretrain` needs; `mu finetune` does not")
    if without:
        raise DataError(
            f"data.sections: no sample of {', '.join(without)} has text in {', '.join(sections)}; "
            f"sections there: {there or 'none'}. `-o 'data.sections=[...]'` chooses, and "
            "`-o 'data.sections=[]'` takes the sections that the data set names"
        )
    return f"samples with text in {', '.join(sections)}: {', '.join(told)}"


def _no_text(shards: Shards) -> bool:
    """Whether no sample has text in any section."""
    metas = (shards.meta(row) for row in range(len(shards)))
    return not any((text or "").strip() for meta in metas for text in (meta.get("sections") or {}).values())


def check_tokenizer(recipe: PretrainRecipe) -> str:
    """Check that the tokenizer's files are on this machine, unless the run trains one.

    A cased vocabulary that is read as uncased gets a hint and is no error: transformers reads it so as well.
    """
    if recipe.text.tokenizer == "train":
        return f"trained on the split {recipe.data.train!r}, at most {recipe.text.vocabulary:,} tokens"
    tokenizer = TextTokenizer.load(recipe.text.tokenizer)
    capitals = tokenizer.unused_capitals
    hint = (
        f"; read as uncased, so {capitals:,} tokens with capitals are never used: for a cased vocabulary "
        'write {"do_lower_case": false} into tokenizer_config.json next to it'
    )
    return f"{recipe.text.tokenizer}: {tokenizer.size:,} tokens with [DEC]{hint if capitals else ''}"


def check_text_encoder(recipe: PretrainRecipe) -> str:
    """Check that the weights the image-text encoder starts from are on this machine."""
    weights = recipe.model.qformer.weights
    if weights == "random":
        return "random"
    return str(weights_path("model.qformer.weights", weights, TRANSFORMERS_FILES))


def check_model(recipe: PretrainRecipe) -> str:
    """Check that the sizes in the recipe fit each other, by building the model without memory."""
    import torch

    from medunifier_cli.objectives.pretraining import build_model

    # the vocabulary of a tokenizer that is yet to be trained is not known: its limit and [DEC]
    with torch.device("meta"):
        model = build_model(recipe, recipe.text.vocabulary + 1, load=False)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{total / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M of them trained"


def check_contrast_batch(recipe: PretrainRecipe, processes: int) -> str:
    """As `check_batch`, and among how many pairs ITC and ITM find their negatives: one pass of all ranks."""
    result = check_batch(recipe.train, processes, "pairs")
    train, ranks = recipe.train, processes or 1
    micro = micro_batch_size(train.global_batch, train.micro_batch, ranks)
    return f"{result}; ITC and ITM contrast among {micro * ranks}"
