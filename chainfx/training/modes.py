"""Which parts of a network train and which stand still, and leaving everything as it was found."""

from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches

from torch import nn

from chainfx.errors import TuningError
from chainfx.ir.graph import has_inference_tensors

__all__ = ["freeze", "restored", "set_modes"]


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give ``requires_grad``, the training flags and the device back as they were, whatever happens inside."""
    flags = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), None)
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for parameter, requires_grad in gradients:
            if parameter.requires_grad != requires_grad:  # torch lets nobody touch those made in inference mode
                parameter.requires_grad_(requires_grad)
        if device is not None:
            model.to(device)


def freeze(model: nn.Module, names: tuple[str, ...] | None) -> dict[str, nn.Parameter]:
    """Let only the named parameters (``None``: all of floating point) have gradients, and return them."""
    if has_inference_tensors(model):
        raise TuningError(
            "tuning: the network was made in torch.inference_mode(), and torch trains no such parameters in place; "
            "train a copy.deepcopy of it that is made outside of that mode."
        )
    parameters = dict(model.named_parameters())
    if names is None:
        names = tuple(name for name, parameter in parameters.items() if parameter.is_floating_point())
    for name in names:
        if name not in parameters:
            close = get_close_matches(name, parameters, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {len(parameters)} others."
            raise TuningError(f"tuning: the network has no parameter {name!r} to train; {hint}")
    if not names:
        raise TuningError("tuning: there is no parameter to train; name some in TuneRequest(parameters=...).")
    chosen = set(names)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in chosen)
    return {name: parameters[name] for name in names}


def set_modes(model: nn.Module, trained: dict[str, nn.Parameter]) -> None:
    """Train mode for what is trained, eval mode for what is frozen.

    A module without any parameter (dropout) goes with the nearest module around it that has some; if that is the whole
    network, it trains only when all of the network does.
    """
    chosen = {id(parameter) for parameter in trained.values()}
    everything = all(id(p) in chosen for p in model.parameters() if p.is_floating_point())

    def visit(module: nn.Module, inherited: bool) -> None:
        own = [id(parameter) in chosen for parameter in module.parameters()]
        module.training = any(own) if own else inherited
        for child in module.children():
            visit(child, everything if module is model else module.training)

    visit(model, everything)
