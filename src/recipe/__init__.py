"""The only place where llama, lora, int8, optim8bit and data meet: to train a model, and to ask one.

config.py        a run's settings, typed, with defaults       config_file.py  the same in TOML
assemble.py      settings -> model, optimizer; the result     run_data.py     files -> examples, order of the whole run
memory.py        predicted memory of a run                    dry_run.py      a run described before it costs anything
inference.py     files -> a model ready to answer             companions.py   tokenizer and template travel with weights
fit.py           does it fit into memory, and what would      int8_checkpoint.py  an 8-bit base on disk, mapped
merge.py         base + adapter, tensor by tensor             command_line.py  how the scripts fail
conversation.py  several turns -> one prompt                  chat.py         a chat at the terminal
model_digest.py  by what a model is recognised
"""

from recipe.assemble import (
    build_model,
    build_optimizer,
    checkpoint_folder,
    load_tokenizer,
    model_shape,
    pick_device,
    prepare_for_training,
    save_result,
    storage_dtype,
)
from recipe.command_line import plain_errors
from recipe.companions import copy_companions
from recipe.config import FREE_TO_CHANGE, MINIATURE, RunConfig
from recipe.config_file import config_text, read_config, write_config
from recipe.dry_run import dry_run, preview
from recipe.fit import check_training_fits, free_memory, is_out_of_memory, memory_remedies
from recipe.inference import Inference, ModelOptions, load_for_inference, prompt_ids
from recipe.memory import MemoryPlan, count_parameters, meta_model, planned_state, predict_memory
from recipe.model_digest import model_digest
from recipe.run_data import RunData, RunPlan, data_files, digest, load_run_data, plan_steps

__all__ = [
    "FREE_TO_CHANGE",
    "MINIATURE",
    "Inference",
    "MemoryPlan",
    "ModelOptions",
    "RunConfig",
    "RunData",
    "RunPlan",
    "build_model",
    "build_optimizer",
    "check_training_fits",
    "checkpoint_folder",
    "config_text",
    "copy_companions",
    "count_parameters",
    "data_files",
    "digest",
    "dry_run",
    "free_memory",
    "is_out_of_memory",
    "load_for_inference",
    "load_run_data",
    "load_tokenizer",
    "memory_remedies",
    "meta_model",
    "model_digest",
    "model_shape",
    "pick_device",
    "plain_errors",
    "plan_steps",
    "planned_state",
    "predict_memory",
    "prepare_for_training",
    "preview",
    "prompt_ids",
    "read_config",
    "save_result",
    "storage_dtype",
    "write_config",
]
