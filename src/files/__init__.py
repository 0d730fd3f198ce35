"""Files on disk: what is read is not trusted, what is written is whole. Below every other package; imports none.

errors.py    FileError and its three kinds: damaged, unsafe, unsuitable
tensors.py   a tensor that lies elsewhere, and safetensors' names of dtypes
reading.py   JSON, safetensors, torch's pickles: damage is a FileError, and no code runs
             safetensors_header.py, pickles.py, pickle_structure.py: what is checked before anything is built
rows.py      JSON and text of any size, row by row; fields.py: values of a parsed file, and where they stand
lines.py     a journal: rows appended one by one, on the disk before the next
writing.py   one file, a set of files, a directory: after a crash or on a full disk the old one or the new, never half
locks.py     what a living process writes, told from what a killed one left
versions.py  which programs made a file
"""

from files.errors import DamagedFileError, FileError, UnsafeFileError, UnsuitableFileError, printable, shown
from files.reading import (
    open_tensor_file,
    read_json_object,
    read_pickle,
    read_pickled_tensors,
    read_safetensors,
    require_regular_file,
    sha256_of,
)
from files.tensors import SAFETENSORS_DTYPES, StoredTensor
from files.versions import versions
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
    "DamagedFileError",
    "FileError",
    "StoredTensor",
    "UnsafeFileError",
    "UnsuitableFileError",
    "json_text",
    "open_tensor_file",
    "printable",
    "read_json_object",
    "read_pickle",
    "read_pickled_tensors",
    "read_safetensors",
    "remove_folder",
    "require_regular_file",
    "sha256_of",
    "shown",
    "staged_files",
    "sync",
    "versions",
    "whole_folder",
    "write_pickle",
    "write_safetensors",
    "write_whole",
]
