"""Networks in repositories of the Hugging Face Hub, and in folders of the same form."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from cifar_lightning.extras import require
from cifar_lightning.files import naming, write_whole

if TYPE_CHECKING:
    from typing import Self

CARD = "README.md"


class HubMethods:
    """Saves a module to the Hugging Face Hub and loads it from there, by huggingface_hub's `PyTorchModelHubMixin`.

    A saved network is a folder, or a repository of the same files: `config.json` (what its class takes),
    `model.safetensors` and `README.md`, the model card. The extra `hub` is needed once a method is called.

    Attributes:
        options: What the module's class takes, in values that JSON can hold.
    """

    options: dict[str, Any]

    @classmethod
    def from_pretrained(cls, name: str | Path, **options: Any) -> "Self":
        """Load a network, in evaluation mode.

        Args:
            name: A folder, which needs no network connection, or the name of a repository, such as "me/my-mlp".
            options: What `PyTorchModelHubMixin.from_pretrained` takes: revision, token, local_files_only, ...

        Raises:
            ValueError: If the extra `hub` is missing, or the network is of another class.
        """
        try:
            loaded = _hub_class(cls).from_pretrained(name, **{"strict": True} | options)
        except (TypeError, RuntimeError) as error:  # of the class, or of the state
            raise ValueError(
                f"wrong network {str(name)!r}: expected one that {cls.__name__} has saved, received another: {error}"
            ) from error
        module: Any = cls(**loaded.options)
        module.load_state_dict(loaded.state_dict())
        module.eval()
        return module  # type: ignore[no-any-return]

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> None:
        """Save the network into a folder, which is made if it is missing.

        Args:
            folder: The folder.
            card: Text of the model card; by default a card that is there stays, or else a general one is written.

        Raises:
            ValueError: If the extra `hub` is missing.
        """
        copy = self._hub_copy()
        if card is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            write_whole(Path(folder) / CARD, card.encode())
        with naming(folder):
            copy.save_pretrained(folder)

    def push_to_hub(self, repo_id: str, card: str | None = None, **options: Any) -> str:
        """Save the network into a repository, which is made if it is missing, and return the commit's address.

        Args:
            repo_id: The repository's name, such as "me/my-mlp".
            card: Text of the model card; by default a general one.
            options: What `PyTorchModelHubMixin.push_to_hub` takes: private, token, commit_message, ...

        Raises:
            ValueError: If the extra `hub` is missing.
        """
        copy = self._hub_copy()
        if card is not None:
            from huggingface_hub import ModelCard

            copy.generate_model_card = lambda **_: ModelCard(card)
        return str(copy.push_to_hub(repo_id, **options))

    def _hub_copy(self) -> Any:
        """A copy of the module that has the mixin's methods."""
        assert isinstance(self, nn.Module), "it is one of its bases"
        copy = _hub_class(type(self))(**self.options)
        copy.load_state_dict(self.state_dict())
        return copy


def _hub_class(cls: Any) -> Any:
    """A class that is `cls` and has the mixin's methods in the place of `HubMethods`'.

    huggingface_hub is imported here alone: it takes a while, and few need it.
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
