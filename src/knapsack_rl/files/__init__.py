"""Files: written all or nothing, state as arrays without pickle, lines of text, Python files that are run."""

from knapsack_rl.files.atomic import replacing
from knapsack_rl.files.code import RUN_FILE_PREFIX, run_file
from knapsack_rl.files.state import (
    FORMAT,
    VERSION,
    BeliefFileError,
    SavedToFile,
    State,
    as_array,
    check_kind,
    read_state,
    saved_array,
    write_state,
)
from knapsack_rl.files.text import complete_lines, find_files, parse_json, plain_json

__all__ = [
    "FORMAT", "RUN_FILE_PREFIX", "VERSION", "BeliefFileError", "SavedToFile", "State",
    "as_array", "check_kind", "complete_lines", "find_files", "parse_json", "plain_json",
    "read_state", "replacing", "run_file", "saved_array", "write_state",
]  # fmt: skip
