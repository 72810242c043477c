"""Saving networks to the Hugging Face Hub, or to local folders in the same format, and loading them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from cifar_lightning.extras import require
from cifar_lightning.files import naming, write_whole

if TYPE_CHECKING:
    from typing import Self

CARD = "README.md"


class HubMethods:
    """Adds saving to and loading from the Hugging Face Hub, using huggingface_hub's `PyTorchModelHubMixin`.

    A saved network is a folder, or a repository with the same files: `config.json` (the constructor's arguments),
    `model.safetensors` and `README.md`, the model card. Calling a method needs the `hub` extra.

    Attributes:
        options: The constructor's arguments, as JSON values.
    """

    options: dict[str, Any]

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "Self":
        """Load a network, in evaluation mode.

        Args:
            name: A local folder, or the name of a repository, such as "me/my-mlp".
            options: Passed on to `PyTorchModelHubMixin.from_pretrained`: revision, token, local_files_only, ...

        Raises:
            ValueError: If the `hub` extra is missing, or if another class saved the network.
        """
        try:
            loaded = _hub_class(cls).from_pretrained(name, **{"strict": True} | options)
        except (TypeError, RuntimeError) as error:  # of the class, or of the state
            raise ValueError(
                f"cannot load {str(name)!r}: expected a network that {cls.__name__} has saved, got another: {error}"
            ) from error
        module: Any = cls(**loaded.options)
        module.load_state_dict(loaded.state_dict())
        module.eval()
        return module  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Save the network into a folder, created if missing.

        Args:
            folder: The folder.
            card: Text of the model card. By default an existing card is kept, and a generic one is written otherwise.

        Raises:
            ValueError: If the `hub` extra is missing.
        """
        copy = self._hub_copy()
        if card is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_whole(Path(folder) / CARD, card.encode())
        with naming(folder):
            copy.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, card: str | None = None, **options: Any) -> str:
        """Push the network to a repository, created if missing, and return the URL of the commit.

        Args:
            repo_id: The repository's name, such as "me/my-mlp".
            card: Text of the model card; a generic one by default.
            options: Passed on to `PyTorchModelHubMixin.push_to_hub`: private, token, commit_message, ...

        Raises:
            ValueError: If the `hub` extra is missing.
        """
        copy = self._hub_copy()
        if card is not None:
            from huggingface_hub import ModelCard

            copy.generate_model_card = lambda **_: ModelCard(card)
        return str(copy.push_to_hub(repo_id, **options))

    def _hub_copy(self) -> Any:
        """A copy of the module with the mixin's methods."""
        assert isinstance(self, nn.Module), "HubMethods is mixed into a module"
        copy = _hub_class(type(self))(**self.options)
        copy.load_state_dict(self.state_dict())
        return copy


def _hub_class(cls: Any) -> Any:
    """A subclass of `cls` in which the mixin's methods replace those of `HubMethods`.

    huggingface_hub is only imported here, since the import is slow and few users need it.
    """
    require("hub")
    from huggingface_hub import PyTorchModelHubMixin

    class Hub(
        PyTorchModelHubMixin,  # type: ignore[misc, call-arg, unused-ignore]
        cls,  # type: ignore[misc, unused-ignore]
        library_name="cifar_lightning",
        license="apache-2.0",
        pipeline_tag="image-classification",
        tags=["mlp", "self-normalizing"],
    ):
        """The class with the mixin's methods."""

        def _save_pretrained(self, folder: Path) -> None:
            """Write the weights; safetensors' own writer hides the system's errors."""
            from safetensors.torch import save

            state = {name: value.contiguous() for name, value in self.state_dict().items()}
            write_whole(folder / "model.safetensors", save(state, {"format": "pt"}))

    Hub.__name__ = Hub.__qualname__ = cls.__name__
    return Hub
