"""Files on disk: what is read is not trusted, what is written is whole. Below every other package; imports none.

tensors.py   a tensor that lies elsewhere, and safetensors' names of dtypes
reading.py   JSON, safetensors, torch's pickles: damage is a ValueError that names the file, and no code runs
writing.py   one file, a set of files, a directory: after a crash or on a full disk the old one or the new, never half
"""

from files.reading import (
    open_tensor_file,
    read_json_object,
    read_pickle,
    read_pickled_tensors,
    read_safetensors,
    sha256_of,
)
from files.tensors import SAFETENSORS_DTYPES, StoredTensor
from files.writing import (
    json_text,
    remove_folder,
    staged_files,
    sync,
    whole_folder,
    write_pickle,
    write_safetensors,
    write_whole,
)

__all__ = [
    "SAFETENSORS_DTYPES",
    "StoredTensor",
    "json_text",
    "open_tensor_file",
    "read_json_object",
    "read_pickle",
    "read_pickled_tensors",
    "read_safetensors",
    "remove_folder",
    "sha256_of",
    "staged_files",
    "sync",
    "whole_folder",
    "write_pickle",
    "write_safetensors",
    "write_whole",
]
