"""Where the default configurations are: in the installed package, or beside it in a checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).parent
CONFIGS = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
