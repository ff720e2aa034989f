"""A network up to one of its layers: the forward pass stops as soon as the layer has answered."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from krstore.errors import UnknownNameError, UsageError

__all__ = ["LayerOutputs"]


class LayerOutputs:
    """Maps images to what a layer of a network answers the first time that a forward pass runs it.

    Args:
        network: in eval mode.
        layer: a module's name in it, as `torch.nn.Module.named_modules` gives it.

    Raises:
        UnknownNameError: there is no such layer.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        layers = [name for name, _ in network.named_modules() if name]
        if layer not in layers:
            raise UnknownNameError("layer", layer, layers)
        self._network, self._layer = network, layer

    def __call__(self, images: Tensor) -> Tensor:
        """Map images (n, C, H, W) to the layer's output (n, *shape), in float32 arithmetic.

        Raises:
            UsageError: the model fails on the images, never runs the layer, or that answers no tensor (n, ...).
        """
        output = self._run(images)
        if not isinstance(output, Tensor):
            raise UsageError(f"layer {self._layer!r} returns a {type(output).__name__}; expected a tensor")
        if output.ndim == 0 or len(output) != len(images):
            raise UsageError(
                f"layer {self._layer!r} returns shape {tuple(output.shape)} for {len(images)} images; expected "
                f"({len(images)}, ...)"
            )
        return output

    def state(self, images: Tensor) -> dict[str, Tensor]:
        """Return the weights that the layer's output for these images depends on, by their names in the network."""
        entered: set[str] = set()
        hooks = [
            module.register_forward_pre_hook(lambda module, arguments, name=name: entered.add(name))
            for name, module in self._network.named_modules()
        ]
        try:
            self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return {n: tensor for n, tensor in self._network.state_dict().items() if n.rpartition(".")[0] in entered}

    def _run(self, images: Tensor) -> Any:
        hook = self._network.get_submodule(self._layer).register_forward_hook(_stop)
        try:
            with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                self._network(images)
        except _Reached as reached:
            return reached.output
        except Exception as error:  # another's code runs here, and may raise anything
            raise UsageError(
                f"the model fails on images of shape {tuple(images.shape)} before layer {self._layer!r}: "
                f"{type(error).__name__}: {error}"
            ) from error
        finally:
            hook.remove()
        raise UsageError(f"the model's forward pass never runs layer {self._layer!r}; name one of the modules in it")


class _Reached(BaseException):
    """Carries the layer's output out of the forward pass; no `except Exception` in a network stops it."""

    def __init__(self, output: Any) -> None:
        self.output = output


def _stop(module: nn.Module, arguments: Any, output: Any) -> None:
    raise _Reached(output)
