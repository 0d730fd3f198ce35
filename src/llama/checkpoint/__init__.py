"""Checkpoints: Meta's and Hugging Face's, read and written tensor by tensor.

names.py   own names and Hugging Face's, row orders, Meta's cuts    configs.py   params.json, config.json
read.py    what a directory holds                                   hf_files.py  weight files and their index
load.py    checkpoint -> model
save.py    model or checkpoint -> files                             diff.py      a tuned model less its base
progress.py  GB, GB/s, time left

Opening tensor files warily and replacing a directory's files all at once is `files`' part.
"""

from llama.checkpoint.configs import hf_config_dict
from llama.checkpoint.diff import apply_diff, is_weight_diff, make_diff
from llama.checkpoint.load import load_checkpoint
from llama.checkpoint.read import open_checkpoint, read_config
from llama.checkpoint.save import convert_checkpoint, save_checkpoint, write_checkpoint

__all__ = [
    "apply_diff",
    "convert_checkpoint",
    "hf_config_dict",
    "is_weight_diff",
    "load_checkpoint",
    "make_diff",
    "open_checkpoint",
    "read_config",
    "save_checkpoint",
    "write_checkpoint",
]
