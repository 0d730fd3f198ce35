"""Checkpoints: Meta's and Hugging Face's, read and written tensor by tensor.

names.py         own names and Hugging Face's, row orders, Meta's cuts    configs.py   params.json, config.json
tensor_files.py  safetensors and pickles, opened lazily and warily        read.py      what a directory holds
load.py          checkpoint -> model                                      save.py      model or checkpoint -> files
staging.py       all new files or none                                    progress.py  GB, GB/s, time left
"""

from llama.checkpoint.configs import hf_config_dict
from llama.checkpoint.load import load_checkpoint
from llama.checkpoint.read import open_checkpoint, read_config
from llama.checkpoint.save import convert_checkpoint, save_checkpoint

__all__ = [
    "convert_checkpoint",
    "hf_config_dict",
    "load_checkpoint",
    "open_checkpoint",
    "read_config",
    "save_checkpoint",
]
