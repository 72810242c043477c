"""Which modules drop something in training mode: those of torch and this package by type, others by a trial run."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cifar_lightning.compiled.hooks import is_compiled
from cifar_lightning.nn.alpha_dropout import AlphaDropout

#: The dropout layers of torch.nn and of this package.
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
    """Whether `module`, if its class is torch's or ours, itself drops something in training mode."""
    if isinstance(module, DROPOUTS):
        return bool(module.p > 0)
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0 and module.num_layers > 1
    if isinstance(module, nn.TransformerEncoderLayer):  # in evaluation mode, its fast path skips the dropout inside
        return any(drops(layer) for layer in module.modules() if layer is not module)
    return False


def is_foreign(module: nn.Module) -> bool:
    """Whether the class or forward pass of `module` is neither torch's nor ours, so that it has to be tried out.

    A subclass that inherits its layers and forward pass, such as a `DeepMLP` with different hyperparameters or an
    `MLPClassifier` with a different optimizer, counts as ours.
    """
    cls = type(module)
    owner = next(base for base in cls.__mro__ if "forward" in vars(base))
    known = ("torch.nn.", "cifar_lightning.")
    if "forward" in vars(module) or not str(vars(owner)["forward"].__module__).startswith(known):
        return True
    return not (cls.__module__.startswith(known) or _inherits_layers(cls, owner))


def _inherits_layers(cls: type, owner: type) -> bool:
    """Whether `cls` inherits `as_sequential`, which lists the layers that run, from `owner`, a class of ours."""
    layers = vars(owner).get("as_sequential")
    ours = owner.__module__.startswith("cifar_lightning.") and layers is not None
    return ours and getattr(cls, "as_sequential", None) is layers


def watch(module: nn.Module) -> list[RemovableHandle]:
    """Register a trial of each foreign module inside `module`, to run just before its first call.

    A trial runs the module on the inputs of that call, once in evaluation mode and once in training mode. If training
    mode draws more random numbers, the module stays in it: it uses functional dropout, attention with dropout, or
    hand-written dropout. A trial leaves parameters, buffers, input tensors and generators unchanged.

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
    """A hook that runs before a foreign module's first call and sets the mode to sample the module in.

    Args:
        name: The module's name in messages.
        waiting: The modules that have not been tried yet, with the handles that remove their hooks.
    """

    def __init__(self, name: str, waiting: dict[nn.Module, RemovableHandle]) -> None:
        self.name, self.waiting = name, waiting

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.waiting.pop(module).remove()
        if is_compiled(module):
            _run(module, args, kwargs)  # this tries the network inside, which has a mode of its own
            return
        module.training = False
        without, changed_without = _run(module, args, kwargs)
        # If foreign parts were not called in this run, `module` uses them in another way, such as through a method.
        group = [module, *(part for part in module.modules() if part in self.waiting)]
        self._set_modes(group, True)
        try:
            drawn, changed = _run(module, args, kwargs)
        except Exception as error:  # anything, such as an error about targets, which only exist in training
            self._set_modes(group, False)
            warnings.warn(
                f"Monte-Carlo dropout can't look for dropout in {self.name} itself: expected a forward pass that also "
                f"works in training mode, got {error!r}. The module stays in evaluation mode",
                stacklevel=2,
            )
            return
        draws = not all(map(torch.equal, drawn, without))
        if draws and changed - changed_without:
            raise ValueError(
                f"Monte-Carlo dropout can't sample {self.name}: expected a training mode that only drops, got one "
                f"that also changes {', '.join(sorted(changed))}. Use an nn.Dropout module in it instead"
            )
        self._set_modes(group, draws)

    def _set_modes(self, group: list[nn.Module], training: bool) -> None:
        """Set the mode of a module and of those parts that have not been tried themselves in the meantime."""
        for part in (group[0], *(part for part in group if part in self.waiting)):
            part.training = training


def _run(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Tensor], set[str]]:
    """Run `module` without side effects; return the generators' states after the run, and the changed buffers."""
    before = {name: (buffer, buffer.clone()) for name, buffer in module.named_buffers()}
    changed = set()
    eager = torch.compiler.set_stance("force_eager") if is_compiled(module) else nullcontext()  # trials run in Python
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
    """Copy the tensors in nested tuples, lists and dicts, since in-place dropout overwrites its input."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return value


def fork_generators() -> AbstractContextManager[None]:
    """Restore torch's generators, for the CPU and every CUDA device, at the end of the context."""
    forked: AbstractContextManager[None] = torch.random.fork_rng(range(torch.cuda.device_count()))
    return forked


def generator_states() -> list[Tensor]:
    """The states of torch's generators, for the CPU and every CUDA device."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
