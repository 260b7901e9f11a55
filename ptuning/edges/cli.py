"""The ``ptuning`` command: runs a verb, and turns a user's mistake into one line and exit code 2.

Nothing heavy is imported here: each verb is a module of its own, imported when it is called.
"""

import importlib
import sys
from collections.abc import Sequence

from ptuning import __version__
from ptuning.core.errors import UserError
from ptuning.core.paths import working_directory_is_gone
from ptuning.edges.failures import EXIT_OK, GONE, explain
from ptuning.edges.output import discard_unwritten, flush, prepare, print_error_text, print_line, print_text
from ptuning.edges.suggestions import did_you_mean

VERBS: dict[str, tuple[str, str]] = {
    "train": ("ptuning.edges.train", "tune a prefix on your own rows"),
    "evaluate": ("ptuning.edges.evaluate", "predict test rows with the base model or a prefix, and score the replies"),
    "chat": ("ptuning.edges.chat", "talk to the base model or a prefix in the terminal"),
    "inspect": ("ptuning.edges.inspect_rows", "look at a file of rows before training on it"),
    "serve": ("ptuning.edges.serve", "answer over HTTP, base model and any number of prefixes in one process"),
    "web": ("ptuning.edges.web_command", "chat with the base model and prefixes on a web page, with the API beside it"),
    "quantize": ("ptuning.edges.quantize", "quantize a model folder to INT4 or INT8"),
    "info": ("ptuning.edges.info", "predict how much memory a model needs, without loading it"),
}
"""Verb → (module with ``main(argv) -> exit code``, description)."""


def help_text() -> str:
    """The text of ``ptuning --help``."""
    verbs = "\n".join(f"  {verb:<10} {description}" for verb, (_, description) in VERBS.items())
    return (
        "usage: ptuning VERB [settings]\n\n"
        "P-Tuning v2 for ChatGLM-6B: the model stays frozen, a small prefix is trained.\n\n"
        f"verbs:\n{verbs}\n\n"
        "ptuning VERB --help lists the settings of a verb; ptuning --version prints the version.\n"
        "Settings are given as --name value, as name=value, or in a .yaml or .json file named first."
    )


def run(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code.

    Raises:
        UserError: an unknown verb, or an error of the verb.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print_text(help_text())
        return EXIT_OK
    if argv[0] in ("-V", "--version", "version"):
        print_line(f"ptuning {__version__}")
        return EXIT_OK
    verb, rest = argv[0], list(argv[1:])
    if verb not in VERBS:
        raise UserError(f"ptuning {verb}: no such verb; {did_you_mean(verb, VERBS)} (ptuning --help)")
    if working_directory_is_gone():
        raise UserError(GONE)
    return int(importlib.import_module(VERBS[verb][0]).main(rest) or EXIT_OK)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command.

    Exit codes: 0 success; 1 the model gave no answer, cannot be trained further, or the system refused something (a full
    disk); 2 the user has to correct something; 130 interrupted; 141 the reader of the output has gone; 143 SIGTERM.
    An error is one line on standard error (:mod:`ptuning.edges.failures`); a bug is a traceback.
    """
    prepare(whole_process=argv is None)
    try:
        code = run(sys.argv[1:] if argv is None else argv)
        flush()
    except (Exception, KeyboardInterrupt) as error:
        explanation = explain(error)
        if explanation is None:
            raise
        discard_unwritten()
        line, code = explanation
        if line:
            print_error_text(line)
    return code
