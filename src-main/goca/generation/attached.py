"""`AttachedPipeline`: observes a pipeline that the user calls; `goca.trace` and `goca.guidance` are built on it.

attached = AttachedPipeline(pipe, layers)
attached.hook(before, after)        # around each forward pass of the denoiser
attached.observe(pipe, "encode_prompt", report)
...                                 # pipe(prompt)
attached.detach()                   # the pipeline is unchanged
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from diffusion_feature import AttentionTap, Consumer, FeatureExtractor
from diffusion_feature.calls import Call, CallNotUnderstood
from diffusion_feature.modules import not_compiled
from torch import nn

Arguments = Mapping[str, Any]
Before = Callable[[Call], Consumer | None]
After = Callable[[Consumer, Any], Any]


class AttachedPipeline:
    """Hooks on a pipeline in use; `detach` undoes all of them.

    pipe    a diffusers pipeline object
    layers  its layers
    error   the error raised for a call of the denoiser that cannot be read
    """

    def __init__(self, pipe: Any, layers: FeatureExtractor, error: type[Exception] = CallNotUnderstood):
        self.pipe, self.layers, self.error = pipe, layers, error
        self._undo = ExitStack()
        self._running: tuple[AttentionTap, Consumer] | None = None  # the observed forward pass

    @property
    def running(self) -> bool:
        """Whether the denoiser is in a forward pass that is observed."""
        return self._running is not None

    def hook(self, before: Before, after: After) -> None:
        """Observe the denoiser's forward passes. The denoiser runs uncompiled, since a compiled attention is not seen.

        before  call -> consumer of the pass's attention; None: this pass is not observed
        after   (consumer, output) -> what replaces the output, None: nothing; not called where the pass failed
        """
        denoiser = self.layers.denoiser

        def pre_hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            try:
                call = self.layers.backbone.read_call(module, args, kwargs)
            except CallNotUnderstood as error:
                raise self.error(str(error)) from None
            if (consumer := before(call)) is not None:
                tap = self.layers.tap(consumer, call.side, call.beside)
                self._running = tap.__enter__(), consumer

        def post_hook(module: nn.Module, args: Any, output: Any) -> Any:
            if output is None:  # the pass failed
                self._close_tap(RuntimeError)
                return None
            consumer = self._close_tap(None)
            return None if consumer is None else after(consumer, output)

        self._undo.enter_context(not_compiled(denoiser.modules()))
        self._undo.callback(denoiser.register_forward_pre_hook(pre_hook, with_kwargs=True).remove)
        self._undo.callback(denoiser.register_forward_hook(post_hook, always_call=True).remove)

    def observe(self, owner: Any, name: str, report: Callable[[Arguments, Any], None]) -> None:
        """Report each call of a method of this object, afterwards: report(arguments by name, result)."""
        self._undo.callback(observe_method(owner, name, report))

    def observe_call(self, report: Callable[[Arguments], None]) -> None:
        """Report each call of the pipeline itself, beforehand: report(arguments by name).

        `pipe(...)` looks `__call__` up in the class, so until `detach` the pipeline has a subclass of the same name.
        """
        kind = type(self.pipe)
        self.pipe.__class__ = with_observed_call(kind, report)
        self._undo.callback(setattr, self.pipe, "__class__", kind)

    def detach(self) -> None:
        """Undo everything, and close the tap of a forward pass that was interrupted by Ctrl-C."""
        self._close_tap(KeyboardInterrupt)
        self._undo.close()

    def _close_tap(self, error: type[BaseException] | None) -> Consumer | None:
        """The consumer of the pass that ends; without an error the tap checks that it saw every attention."""
        if self._running is None:
            return None
        (tap, consumer), self._running = self._running, None
        tap.__exit__(error, None, None)
        return consumer


def is_observed(pipe: Any) -> bool:
    """Whether calls of the pipeline are observed (`observe_call`)."""
    return hasattr(type(pipe), "reports_calls")


def with_observed_call(kind: type, report: Callable[[Arguments], None]) -> type:
    """A subclass with the same name, whose call reports its arguments first."""
    signature = inspect.signature(kind.__call__)

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        report(bound.arguments)
        return kind.__call__(self, *args, **kwargs)

    return type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__, "reports_calls": True})


def observe_method(owner: Any, name: str, report: Callable[[Arguments, Any], None]) -> Callable[[], None]:
    """Replace a method of one object by one that reports its calls; returns the function that restores it."""
    method, own = getattr(owner, name), vars(owner).get(name)
    signature = inspect.signature(method)

    def observed(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = {name: list(value) if isinstance(value, list) else value for name, value in bound.arguments.items()}
        result = method(*args, **kwargs)  # which may write into the lists that it is given
        report(given, result)
        return result

    def undo() -> None:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    setattr(owner, name, observed)
    return undo
