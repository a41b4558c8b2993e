"""What training scripts pickle beside their weights, and the inert stand-ins it is read as.

A PyTorch file is a pickle, and unpickling calls what the file names. With `weights_only=True` torch
calls nothing but what rebuilds tensors and plain containers, and refuses every other name. Many
training scripts save harmless things beside the weights: their arguments, a NumPy scalar with the
best metric, a date. Such names are listed here; a class that does nothing takes the place of each,
so that the file is read, nothing that it names is imported or called, and its weights are taken.
"""

import io
import pickletools
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO, NamedTuple

# Full names of classes and functions, as pickles write them today (Python 2's are translated).
HARMLESS = frozenset(
    {
        "argparse.Namespace",
        "collections.ChainMap",
        "collections.UserDict",
        "collections.UserList",
        "collections.defaultdict",
        "collections.deque",
        "datetime.date",
        "datetime.datetime",
        "datetime.time",
        "datetime.timedelta",
        "datetime.timezone",
        "decimal.Decimal",
        "fractions.Fraction",
        "functools.partial",
        "pathlib.Path",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib.PureWindowsPath",
        "pathlib.WindowsPath",
        "types.SimpleNamespace",
        "typing.Any",
        "typing.Union",
        "typing.Optional",
        "uuid.UUID",
        "zoneinfo.ZoneInfo._unpickle",
        "torch.torch_version.TorchVersion",
        *(
            f"builtins.{name}"
            for name in (
                *("bool", "bytes", "dict", "float", "frozenset", "int", "list", "object"),
                *("range", "slice", "str", "tuple", "type"),
            )
        ),
        *(
            f"numpy.{name}"
            for name in (
                *("dtype", "ndarray", "bool_", "bool", "str_", "bytes_", "datetime64"),
                *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
                *("float16", "float32", "float64", "complex64", "complex128"),
            )
        ),
        *(
            f"numpy.{core}.multiarray.{name}"
            for core in ("core", "_core")
            for name in ("scalar", "_reconstruct")
        ),
    }
)
# Packages of configuration containers and of training loops, whole: what they leave in a file is
# settings and the state of their loops.
HARMLESS_PACKAGES = (
    "numpy.dtypes.",
    "numpy.random.",
    "pathlib._local.",
    "addict.",
    "box.",
    "easydict.",
    "fvcore.common.config.",
    "lightning.",
    "lightning_fabric.",
    "ml_collections.",
    "mmcv.utils.config.",
    "mmengine.config.",
    "mmengine.logging.",
    "munch.",
    "omegaconf.",
    "PIL.Image.",
    "pytorch_lightning.",
    "torch.optim.",
    "torchvision.transforms.",
    "yacs.",
)
# The unpickler sets items only on a plain mapping and appends only to a plain list.
MAPPINGS = (
    *("defaultdict", "AttributeDict", "Box", "CfgNode", "ConfigDict", "Dict", "EasyDict", "Munch"),
)
LISTS = ("deque", "frozenset")

_PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_PYTHON2_NAMES = {
    "builtins.long": "builtins.int",
    "builtins.xrange": "builtins.range",
    "builtins.unicode": "builtins.str",
}
_PROTOCOL = 2  # the one that torch.save writes and that its restricted unpickler reads


class Pickled(NamedTuple):
    """What a file's pickles name, read without running them."""

    names: frozenset[str]  # full names of classes and functions
    protocol: int


class Inert:
    """Stands where a harmless object stood; takes whatever is given to it and does nothing."""

    def __new__(cls, *values: object, **named: object) -> Any:
        """Make a stand-in, whatever the original was made of."""
        return object.__new__(cls)

    def __init__(self, *values: object, **named: object) -> None:
        """Forget the values."""

    def __setstate__(self, state: object) -> None:
        """Forget the state."""

    def __repr__(self) -> str:
        return f"{type(self).__module__}.{type(self).__qualname__}"


class InertMapping(Inert):
    """Stands where a subclass of dict stood: its items are read into a plain mapping."""

    def __new__(cls, *values: object, **named: object) -> Any:
        """Give a mapping in place of an instance."""
        return OrderedDict()


class InertList(Inert):
    """Stands where another sequence or a frozen set stood: read as a plain list."""

    def __new__(cls, *values: object, **named: object) -> Any:
        """Give a list in place of an instance."""
        return []


def read_names(file: BinaryIO) -> Pickled:
    """List what the pickles of a PyTorch file name, without running them.

    Raises:
        ValueError: It is damaged, or not such a file.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ValueError(f"an archive with {len(pickles)} files data.pkl")
            return _names(io.BytesIO(archive.read(pickles[0])), 1)
    file.seek(0)
    # Written before torch 1.6: a magic number, a version, the system, the object, storage keys.
    return _names(file, 5)


def is_harmless(name: str) -> bool:
    """Tell whether a full name is on the list."""
    return name in HARMLESS or name.startswith(HARMLESS_PACKAGES)


def stand_in(name: str) -> type[Inert]:
    """Return a class under a full name that does nothing."""
    module, _, own = name.rpartition(".")
    base = Inert
    if own in MAPPINGS:
        base = InertMapping
    elif own in LISTS:
        base = InertList
    # A class of its own for each name and each call: whatever a file sets on it reaches no further.
    made = type(own, (base,), {"__module__": module})
    made.__qualname__ = own
    return made


def reads_protocol(pickled: Pickled) -> bool:
    """Tell whether torch's restricted unpickler knows the protocol."""
    return pickled.protocol <= _PROTOCOL


def _names(file: BinaryIO, pickles: int) -> Pickled:
    names: set[str] = set()
    protocol = 0
    for _ in range(pickles):
        for operation, argument, _ in pickletools.genops(file):
            if operation.name == "PROTO":
                protocol = max(protocol, int(argument or 0))
            elif operation.name in ("GLOBAL", "INST"):
                module, _, own = str(argument).partition(" ")
                name = f"{_PYTHON2.get(module, module)}.{own}"
                names.add(_PYTHON2_NAMES.get(name, name))
    return Pickled(frozenset(names), protocol)
