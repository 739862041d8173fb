"""The shipped configurations for `accelerate launch` are understood by it as they are meant."""

from __future__ import annotations

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

from tinyalign.training.recipe.files import find_launch, shipped_launches


def understood(name: str):
    words = ["--config_file", str(find_launch(name)), "-m", "tinyalign", "train"]
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def test_each_leaves_precision_to_the_recipe_and_takes_a_free_port() -> None:
    for name in shipped_launches():
        args = understood(name)
        assert (args.mixed_precision, args.main_process_port) == ("no", 0)
        assert (args.num_processes, args.num_machines) == (8, 1)


def test_each_is_the_strategy_it_is_named_for() -> None:
    kinds = {name: understood(name) for name in shipped_launches()}
    assert [kinds["ddp"].multi_gpu, kinds["ddp"].use_fsdp, kinds["ddp"].use_deepspeed] == [1, 0, 0]
    assert kinds["fsdp2"].use_fsdp
    environment = prepare_multi_gpu_env(kinds["fsdp2"])
    assert environment["FSDP_VERSION"] == "2"
    assert environment["FSDP_RESHARD_AFTER_FORWARD"] == "true"
    assert environment["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    for stage in (2, 3):
        args = kinds[f"zero{stage}"]
        assert args.use_deepspeed
        assert args.zero_stage == stage
        assert args.gradient_clipping == "auto"
    assert kinds["zero3"].zero3_save_16bit_model
