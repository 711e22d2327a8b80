"""One exception per reason. Every message is one sentence: what, where, which value, what to do."""

__all__ = [
    "ArtifactError",
    "CaptureError",
    "ChainfxError",
    "CostError",
    "DataError",
    "DataWarning",
    "DropWarning",
    "GraphError",
    "InputError",
    "LintError",
    "PassError",
    "RecipeError",
    "ScheduleError",
    "StageWarning",
    "StudyError",
    "TuningError",
    "why_no_file",
]

_FILES = {
    FileNotFoundError: "it does not exist",
    IsADirectoryError: "it is a folder",
    NotADirectoryError: "a part of its path is a file",
    PermissionError: "that is not permitted",
    UnicodeDecodeError: "it is not UTF-8 text",
}


def why_no_file(error: OSError | UnicodeDecodeError) -> str:
    """Why a file could not be read or written, in words that fit into a sentence of an error."""
    return _FILES.get(type(error)) or getattr(error, "strerror", None) or str(error)


class ChainfxError(Exception):
    """The base of every error that chainfx raises on purpose."""


class CaptureError(ChainfxError):
    """The model cannot be turned into a graph; names the source line and the way out."""


class GraphError(ChainfxError):
    """A graph breaks a rule of the train form; names the node and the rule."""


class InputError(ChainfxError):
    """An argument of a public function is wrong or missing; names the argument and the value."""


class PassError(ChainfxError):
    """A pass cannot be applied; names the pass, the node or option, the value seen, and what to do."""


class ScheduleError(ChainfxError):
    """No order satisfies the constraints; prints the cycle, each edge with its reason and source."""


class LintError(ChainfxError):
    """Lint finds errors in a chain, and ``refuse="errors"`` says not to run it so; lists them."""


class CostError(ChainfxError):
    """A cost cannot be stated, for instance because an exit rate was never measured."""


class TuningError(ChainfxError):
    """Training failed, for instance by a loss that is not finite; finished stages are kept."""


class DataError(ChainfxError):
    """A data source cannot be read or does not have the form it should have."""


class RecipeError(ChainfxError):
    """A recipe is wrong; names the line of the file and the allowed values."""


class ArtifactError(ChainfxError):
    """A saved model cannot be written or read; names the file and what is wrong with it."""


class StudyError(ChainfxError):
    """An order study cannot be run or read: its design, its store or its data do not fit."""


class DropWarning(UserWarning):
    """A stage lost more accuracy than ``warn_drop`` allows; names the likely causes."""


class DataWarning(UserWarning):
    """Data are used in another way than the fastest one."""


class StageWarning(UserWarning):
    """A stage in a working folder cannot be read, and is computed again, or cannot be kept there."""
