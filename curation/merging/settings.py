"""What a merge is asked for."""

from pydantic import Field

from echostill.platform.config import Config


class NameMap(Config):
    """What organs and devices of the stores are called in the merged pool."""

    organ: dict[str, str] = Field({}, description="New name by name.")
    device: dict[str, str] = Field({}, description="New name by name.")


class MergeConfig(Config):
    """Stores to merge into a new one."""

    store: str = Field(description="Folder or URI of the merged store.")
    stores: dict[str, str] = Field(description="Folder or URI of each store, by a name for it.")
    map: NameMap = NameMap()
    licence: dict[str, str] = Field({}, description="Licence of a store's images, by its name.")
    key_file: str | None = Field(
        None, description="File with the stores' key, where withdrawn groups must be recognised."
    )
