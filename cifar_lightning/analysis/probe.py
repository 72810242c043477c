"""Which modules drop something in training mode: torch's and ours by their type, any other by a trial run."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cifar_lightning.compiled.hooks import is_compiled
from cifar_lightning.nn.alpha_dropout import AlphaDropout

#: Everything in torch.nn, and of ours, that only drops.
DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    AlphaDropout,
)


def drops(module: nn.Module) -> bool:
    """Whether the training mode of `module` itself, of a class of torch's or ours, is known to drop something."""
    if isinstance(module, DROPOUTS):
        return bool(module.p > 0)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0 and module.num_layers > 1
    if isinstance(module, nn.TransformerEncoderLayer):  # its fast path in evaluation mode skips the dropouts inside
        return any(drops(layer) for layer in module.modules() if layer is not module)
    return False


def is_foreign(module: nn.Module) -> bool:
    """Whether the class or the forward pass of `module` is neither torch's nor ours, so that only a trial tells.

    A class that only inherits its layers and their forward pass, as a `DeepMLP` with other hyperparameters or an
    `MLPClassifier` with another optimizer, counts as ours.
    """
    cls = type(module)
    owner = next(base for base in cls.__mro__ if "forward" in vars(base))
    known = ("torch.nn.", "cifar_lightning.")
    if "forward" in vars(module) or not str(vars(owner)["forward"].__module__).startswith(known):
        return True
    return not (cls.__module__.startswith(known) or _inherits_layers(cls, owner))


def _inherits_layers(cls: type, owner: type) -> bool:
    """Whether `cls` has the `as_sequential` of `owner`, by which a class of ours says what its forward pass runs."""
    layers = vars(owner).get("as_sequential")
    ours = owner.__module__.startswith("cifar_lightning.") and layers is not None
    return ours and getattr(cls, "as_sequential", None) is layers


def watch(module: nn.Module) -> list[RemovableHandle]:
    """Arrange a trial of each foreign module inside `module`, to take place just before its first call.

    A trial runs the module on the inputs of that call, once in evaluation and once in training mode. If training mode
    draws more random numbers, the module stays in it: it has a functional dropout, an attention with one, or a
    dropout written by hand. A trial leaves parameters, buffers, tensors that are passed, and generators as they were.

    Returns:
        Handles that remove the trials.
    """
    trials: dict[nn.Module, RemovableHandle] = {}
    for name, part in module.named_modules():
        if is_foreign(part) and not drops(part):
            trial = _Trial(f"{name or 'the network'} ({type(part).__name__})", trials)
            trials[part] = part.register_forward_pre_hook(trial, with_kwargs=True)
    return list(trials.values())


class _Trial:
    """A hook before a foreign module's first call, which sets the mode that the module samples in.

    Args:
        name: What messages call the module.
        waiting: The modules whose trials have not taken place, and what removes these.
    """

    def __init__(self, name: str, waiting: dict[nn.Module, RemovableHandle]) -> None:
        self.name, self.waiting = name, waiting

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.waiting.pop(module).remove()
        if is_compiled(module):
            _run(module, args, kwargs)  # the trials of the network in it, whose mode is its own too
            return
        module.training = False
        without, changed_without = _run(module, args, kwargs)
        # Foreign parts that this run did not call are run by `module` in another way, as by a method, if at all.
        group = [module, *(part for part in module.modules() if part in self.waiting)]
        self._set_modes(group, True)
        try:
            drawn, changed = _run(module, args, kwargs)
        except Exception as error:  # whatever the module raises, such as for targets that only a training has
            self._set_modes(group, False)
            warnings.warn(
                f"Monte-Carlo dropout can't look for dropout in {self.name} itself: expected a forward pass that works "
                f"in training mode too, got {error!r}. It stays in evaluation mode",
                stacklevel=2,
            )
            return
        draws = not all(map(torch.equal, drawn, without))
        if draws and changed - changed_without:
            raise ValueError(
                f"Monte-Carlo dropout can't sample {self.name}: expected a training mode that only drops, got one "
                f"that also changes {', '.join(sorted(changed))}. Move its dropout into an nn.Dropout"
            )
        self._set_modes(group, draws)

    def _set_modes(self, group: list[nn.Module], training: bool) -> None:
        """Set the modes of a module and of those of its parts whose own trials have not set theirs meanwhile."""
        for part in (group[0], *(part for part in group if part in self.waiting)):
            part.training = training


def _run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], set[str]]:
    """Run `module` without lasting effect; return the states that the generators had then, and the changed buffers."""
    before = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}
    changed = set()
    eager = torch.compiler.set_stance("force_eager") if is_compiled(module) else nullcontext()  # trials are Python
    with torch.no_grad(), fork_generators(), eager:
        try:
            module.forward(*_copied(args), **_copied(kwargs))
        finally:
            after = dict(module.named_buffers())
            for name, (buffer, values) in before.items():
                if after.get(name) is not buffer or not torch.equal(buffer, values):
                    changed.add(name)
                    buffer.copy_(values)
                    place, _, attribute = name.rpartition(".")
                    setattr(module.get_submodule(place), attribute, buffer)
        return generator_states(), changed


def _copied(value: Any) -> Any:
    """Copies of the tensors in nested tuples, lists and dicts, for a dropout in place overwrites its input."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value


def fork_generators() -> AbstractContextManager[None]:
    """Leave torch's generators, of the CPU and of every CUDA device, as they were."""
    forked: AbstractContextManager[None] = torch.random.fork_rng(range(torch.cuda.device_count()))
    return forked


def generator_states() -> list[Tensor]:
    """The states of these generators."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
