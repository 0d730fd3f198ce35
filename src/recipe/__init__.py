"""A run's settings, and `assemble`: the only place where llama, lora, int8, optim8bit and data meet.

config.py       the settings, typed, with their defaults     config_file.py  the same in TOML
assemble.py     settings -> model, optimizer; loading to ask  run_data.py     files -> examples, order of the whole run
memory.py       predicted memory of a run                     dry_run.py      a run described before it costs anything
prompt_file.py  the prompt template saved beside weights
"""

from recipe.assemble import (
    Inference,
    build_model,
    build_optimizer,
    bundled_base,
    data_files,
    load_for_inference,
    load_tokenizer,
    model_shape,
    pick_device,
    prepare_for_training,
    save_result,
    storage_dtype,
)
from recipe.config import RunConfig
from recipe.config_file import read_config, write_config
from recipe.dry_run import dry_run, preview
from recipe.memory import MemoryPlan, count_parameters, meta_model, predict_memory
from recipe.run_data import RunData, load_run_data, plan_steps, steps_per_epoch

__all__ = [
    "Inference",
    "MemoryPlan",
    "RunConfig",
    "RunData",
    "build_model",
    "build_optimizer",
    "bundled_base",
    "count_parameters",
    "data_files",
    "dry_run",
    "load_for_inference",
    "load_run_data",
    "load_tokenizer",
    "meta_model",
    "model_shape",
    "pick_device",
    "plan_steps",
    "predict_memory",
    "prepare_for_training",
    "preview",
    "read_config",
    "save_result",
    "steps_per_epoch",
    "storage_dtype",
    "write_config",
]
