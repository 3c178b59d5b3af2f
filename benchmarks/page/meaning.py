"""What each key of a benchmark's JSON line means."""

from __future__ import annotations

CPU_RATIO = "a ratio of seconds on the same cores in turns, which other work changes less than the seconds"
STEP = {
    "blocking_transfers": "copies and waits in a step for which the CPU stands still",
    "transfers": "copies between CPU and card in a step",
    "launches": "kernels in a step",
    "collectives": "exchanges between ranks in a step",
    "gigabytes": "read and written by all kernels of a step",
    "peak_gib": "most memory that tensors take, GiB",
    "tflop_per_sample": "floating point operations of a pair's part of a step, in 10^12",
    "predicted_samples_per_s": "pairs a second and card by assumed rates of an H100, not measured",
}
MEANINGS: dict[str, dict[str, str]] = {
    "decoding": {
        "ratio": "times as long as our beam search takes, if each token reads the whole text again",
        "same_texts": "both searches wrote the same texts",
        "same_texts_over": "length up to which that was tried",
        "images_per_second": "reports written a second",
        "images": "images", "beams": "beams of the search", "recomputation": "how the slow side was timed",
        "threads": "CPU threads",
    },
    "deterministic": {
        "ratio": "times as long as a usual step takes one with deterministic kernels",
        "device": "card", "spread": "smallest and largest of these ratios",
        "median_s": "seconds of a step", "repeats_bit_for_bit": "two runs gave the same weights",
        "batch": "pairs of a step",
    },
    "features": {
        "ratio": f"pairs a second with cached features over those with a live image encoder; {CPU_RATIO}",
        "processor_ratio": "the same by CPU time", "pairs_per_second_live": "trained with a live encoder",
        "pairs_per_second_cached": "trained with cached features",
        "largest_difference_of_loss": "between both, relative", "bytes_per_sample": "of a cache",
        "read_samples_per_second": "samples whose features are read and verified",
        "read_mb_per_second": "MB of them", "computed_per_second": "images whose features are computed",
        "image_bytes_per_sample": "of the image in its shard", "threads": "CPU threads",
    },
    "gpu": {
        "device": "card", "cards": "cards", "batch": "pairs of a card in a step",
        "samples_per_s": "pairs a second over all cards, by cards and kind of step",
        "spread": "slowest and fastest of the rounds", "peak_gib": STEP["peak_gib"],
        "tflop_per_sample": STEP["tflop_per_sample"],
        "utilisation": "share of the FLOP a second on the card's data sheet",
        "loss_fp32": "largest relative difference of a loss from the CPU's, fp32",
        "loss_bf16": "the same with the card in bf16",
        "gradient_fp32": "length of the difference of all gradients from the CPU's over their length, fp32",
        "gradient_bf16": "the same with the card in bf16",
        "within_fp32": "both are within 0.0001 and 0.001", "within_bf16": "both are within 0.03 and 0.1",
        "largest_parts": "operations whose kernels take most of a step, by PyTorch's profiler",
        "killed_at": "step of the last checkpoint when the run was killed",
        "resumed_bit_equal": "the run that was killed and resumed ended as one that was left alone",
        "resumed_difference": "largest relative difference of their logged losses",
        "resumed_within": "it is within 0.05, or 0 on a CPU",
        "sampled_images": "images sampled", "seconds_of_codes": "seconds for their codes, both priors",
        "seconds_of_decoding": "seconds for decoding them one by one",
        "failed": "sections without numbers, and why",
    },
    "growth": {
        "sizes": "samples",
        "retrieval_embedding": "queries of an image and width of retrieval's embeddings",
        "fid_width": "width of the features of the Fréchet distance",
        **{
            f"{part}_{name}": f"{what}: {unit}, by size"
            for part, what in (
                ("retrieval", "retrieval both ways with its chance level"),
                ("embedding", "embeddings of 32 x 256 written, verified and mapped"),
                ("copies", "nearest of N training features to 1,024 images"),
                ("fid", "Fréchet distance with its interval"),
            )
            for name, unit in (("mib", "own memory at its peak in MiB"), ("cpu_seconds", "CPU seconds"))
        },
    },
    "loader": {
        "share_of_decode": "the smaller of the next two",
        "share_1": "images a second with 1 worker, as a share of bare decoding in one process",
        "share_2": "the same with 2 workers", "share_in_process": "the same without workers",
        "decode_images_per_s": "PNGs of 224 x 224 decoded a second by one process",
        "decode_images_per_cpu_s": "the same per second of CPU time, so of a core that does nothing else",
        "loader_images_per_s": "images a second that reach the loop, by workers",
        "processor_share_1": "as share_1, by CPU time of all processes", "processor_share_2": "as share_2",
        "spread_decode": "largest less smallest rate of bare decoding, over the median",
        "mean_bytes": "of a PNG", "rss_mib_by_epoch": "MiB of parent and workers after each epoch",
        "growth_mib": "most that a process grew from the first to the third epoch",
        "small_samples": "samples of these epochs",
    },
    "objectives": {
        "ratio": f"times as long as ITC, ITM and ITG take the way the paper writes them; {CPU_RATIO}",
        "flop_ratio": "the same of floating point operations",
        "spread": "smallest and largest of these ratios", "median_s": "seconds forward and backward",
        "tflop": "floating point operations in 10^12", "peak_mib": "largest resident size in MiB",
        "largest_difference": "of losses, and of gradients relative to their largest entry",
        "batch": "pairs", "threads": "CPU threads",
        **{
            f"{name}_alternate": f"{name} with cross-attention in every second block"
            for name in (
                "ratio", "flop_ratio", "spread", "median_s", "tflop", "peak_mib", "largest_difference",
            )
        },
    },
    "prepare": {
        "ratio": "times as fast as full decoding in colour, resizing and writing PNGs, by workers",
        "ratio_grey": "the same where the slow side decodes in one channel",
        "processor_ratio": "the same by CPU time", "mean_difference": "of the images, in grey levels",
        "seconds": "seconds of all variants", "processor_seconds": "CPU seconds of all variants",
        "images": "images", "mean_megabytes": "of a JPEG",
        "parent_mib": "largest resident size of the parent process, by records",
        "kills": "SIGKILLs at random moments",
        "identical_after_kills": "all files then equal those of an undisturbed run",
    },
    "ranking": {
        "ratio": f"times as long as ours takes a loop over queries; {CPU_RATIO}",
        "pairs": "pairs, each with each, both ways", "queries": "queries of an image",
        "fast_s": "seconds of ours", "slow_s": "seconds of the loop, scaled from some rows",
        "slow_rows_timed": "rows of each direction that were timed",
        "largest_difference": "of a metric between both", "large_pairs": "pairs of the memory run",
        "large_s": "seconds of the memory run", "large_peak_mib": "largest resident size of the process",
        "large_within_2_gib": "it is below 2,048",
    },
    "sampling": {
        "ratio_batch8": "times as long as our sampling takes full recomputation, 8 maps at a time",
        "ratio_batch32": "the same, 32 at a time",
        "over_one_forward": "seconds of sampling 32 maps over those of one forward pass of the priors",
        "cpu_over_one_forward": "the same by CPU time", "recomputation": "how the slow side was timed",
        "samples_per_second_batch32": "code maps of both levels a second",
        "masked_samples_per_second_batch32": "the same by the masked prior of recipes/prior-masked.yaml",
        "masked_over_pixelsnail": "the one over the other, 32 maps at a time", "threads": "CPU threads",
    },
    "step": {"batch": "pairs of a card in a step", **STEP},
    "threads": {
        "ratio_alone": "pairs a second of threads that wait passively over those that spin, one process",
        "ratio_beside": "the same for two processes on the same cores",
        "same_numbers": "the losses are equal to the last bit",
        "pairs_per_second": "trained a second, by how threads wait", "threads": "CPU threads",
        "cores": "cores", "load_before": "load average when it began",
    },
    "tig": {
        "share_of_objectives": "seconds of TIG over those of ITC, ITM and ITG together",
        "share_alone": "the same with its passes over image and text",
        "flop_share": "the same of floating point operations",
        "spread": "smallest and largest of these shares", "median_s": "seconds forward and backward",
        "decoder_million_parameters": "parameters of the decoder in millions",
        "peak_mib": "largest resident size in MiB", "batch": "pairs", "threads": "CPU threads",
    },
}  # fmt: skip
"""Benchmark -> key, or the beginning of a key that is there for several ranks, sizes or kinds -> meaning."""


def meaning_of(name: str, key: str) -> str:
    """What a key means; empty if nobody wrote it down."""
    meanings = MEANINGS[name]
    if key in meanings:
        return meanings[key]
    begins = [listed for listed in meanings if key.startswith(f"{listed}_")]
    return meanings[max(begins, key=len)] if begins else ""
