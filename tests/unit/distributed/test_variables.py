"""Which variables of Accelerate pass, against what its own launcher exports."""

from __future__ import annotations

import os

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

from medunifier_cli.distributed.variables import check_variables
from medunifier_cli.errors import MuError


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def exported(*options: str, several: bool = False) -> dict[str, str]:
    """The variables of Accelerate that `accelerate launch OPTIONS train.py` sets."""
    # what `accelerate launch` fills in where there is no configuration file
    defaults = ["--num_processes=2", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    defaults += ["--num_cpu_threads_per_process=1", "--main_process_port=0"]
    args = launch_command_parser().parse_args([*defaults, *options, "train.py"])
    args.use_cpu = False  # as `accelerate launch` sets it without a configuration file
    env = prepare_multi_gpu_env(args) if several else prepare_simple_launcher_cmd_env(args)[1]
    variables = {name: value for name, value in env.items() if name.startswith("ACCELERATE_")}
    assert "ACCELERATE_MIXED_PRECISION" in variables
    return variables


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "options", [[], ["--enable_cpu_affinity", "--debug"], ["--dynamo_mode=max-autotune"]]
)
def test_a_plain_accelerate_launch_passes(
    bare: pytest.MonkeyPatch, precision: str, several: bool, options: list[str]
) -> None:
    for name, value in exported(*options, several=several).items():
        bare.setenv(name, value)
    check_variables(precision)


def test_the_recipes_own_precision_passes_and_no_other(bare: pytest.MonkeyPatch) -> None:
    for name, value in exported("--mixed_precision=bf16").items():
        bare.setenv(name, value)
    check_variables("bf16")
    with pytest.raises(MuError, match=r"^ACCELERATE_MIXED_PRECISION=bf16 is set in the environment"):
        check_variables("fp16")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--dynamo_backend=inductor"], ["ACCELERATE_DYNAMO_BACKEND=INDUCTOR"]),
        (["--use_fsdp", "--fsdp_offload_params=false"], ["ACCELERATE_USE_FSDP=true"]),
        (
            ["--use_fsdp", "--dynamo_backend=eager"],
            ["ACCELERATE_DYNAMO_BACKEND=EAGER", "ACCELERATE_USE_FSDP=true"],
        ),
    ],
)
def test_options_that_change_training_are_refused_by_name(
    bare: pytest.MonkeyPatch, options: list[str], names: list[str]
) -> None:
    for name, value in exported(*options, several=True).items():
        bare.setenv(name, value)
    with pytest.raises(MuError) as error:
        check_variables("no")
    assert str(error.value).startswith(", ".join(names) + " ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "GRADIENT_ACCUMULATION_STEPS", "GRADIENT_CLIPPING", "USE_DEEPSPEED", "DEEPSPEED_ZERO_STAGE",
        "USE_MEGATRON_LM", "USE_PARALLELISM_CONFIG", "TORCH_DEVICE", "OF_A_LATER_VERSION",
    ],
)  # fmt: skip
def test_what_is_set_and_not_used_is_refused_and_what_is_empty_removed(
    bare: pytest.MonkeyPatch, name: str
) -> None:
    bare.setenv(f"ACCELERATE_{name}", "2")
    with pytest.raises(
        MuError, match=rf"^ACCELERATE_{name}=2 is set in the environment, but the recipe alone"
    ):
        check_variables("no")
    bare.setenv(f"ACCELERATE_{name}", "")
    check_variables("no")
    assert f"ACCELERATE_{name}" not in os.environ


def test_the_values_that_accelerate_has_anyway_pass(bare: pytest.MonkeyPatch) -> None:
    for name, value in {
        "GRADIENT_ACCUMULATION_STEPS": "1",
        "USE_DEEPSPEED": "false",
        "USE_FSDP": "0",
    }.items():
        bare.setenv(f"ACCELERATE_{name}", value)
    check_variables("no")
