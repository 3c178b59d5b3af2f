"""Say what `mu synthesize` would draw: how many images, of what, by which runs, and what is there already."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.codes import need_tig
from medunifier_cli.evaluate.synthesis.sample_folder import images_there
from medunifier_cli.evaluate.synthesis.synthesis import Sampler, check_number, reconstruction_settings

Facts = list[tuple[str, object]]


def planned_samples(prompted: Sampler, out: Path, n: int) -> Facts:
    """What sampling would do, by name; nothing is written.

    Prompts may be reports, so their classes stand for them.

    Args:
        n: images that the folder `out` is to have.

    Raises:
        DataError: the folder holds other files, images of other settings, or more than `n`.
    """
    there = len(images_there(out, prompted.settings))
    check_number(out, there, n)
    requests, draws = prompted.requests, prompted.draws
    classes = Counter(requests[i % len(requests)].name or "no class" for i in range(n)) if requests else {}
    settings = {"seed": draws.seed, "temperature": draws.temperature, "guidance": draws.guidance}
    settings |= {"top-k": draws.top_k} if draws.top_k else {}
    settings |= {"top-p": draws.top_p} if draws.top_p < 1 else {}
    settings |= {"best of": prompted.best_of} if prompted.best_of > 1 else {}
    fitted = prompted.fitted
    begun = f"resumes after {there:,}" if there else "new"
    return [
        ("folder", str(out)),
        ("images", n),
        ("start", "nothing: all are there" if there == n else begun),
        ("prompts", len(requests) or "none"),
        *([("of classes", _listed(classes))] if any(request.name for request in requests) else []),
        ("settings", _listed(settings)),
        ("priors", f"{fitted.run.folder} ({fitted.recipe.prior.kind})"),
        ("decoded by", str(fitted.pretrained.run.folder)),
    ]


def planned_reconstructions(pretrained: PretrainedRun, benchmark: Benchmark, out: Path, n: int) -> Facts:
    """What reconstructing images of a split would do, by name; nothing is written.

    Args:
        n: only the first n images; 0 for all.

    Raises:
        CheckpointError: the model was trained without TIG and has no codes.
        DataError: the folder holds other files, or images of other settings.
    """
    need_tig(pretrained)
    there = len(images_there(out, reconstruction_settings(pretrained, benchmark)))
    n = min(n or len(benchmark.source), len(benchmark.source))
    return [
        ("folder", str(out)),
        ("images", n),
        # each is reconstructed for the score, and one that is there is not written again
        ("start", f"anew; {there:,} are there and stay" if there else "new"),
        ("of", f"{benchmark.plugin.name}/{benchmark.split}"),
        ("reconstructed by", str(pretrained.run.folder)),
    ]


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())
