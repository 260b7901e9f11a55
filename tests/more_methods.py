"""Two tuning methods that the package does not have, for the test that a method is only what its object says: one tunes
numbers that are there, one puts other modules in place of those that are there."""

from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ptuning.core.errors import UserError
from ptuning.methods.method import Adapter, AdapterFiles, LearningRates, TuningCost, TuningMethod, Words


def _words(noun):
    return Words(noun, saved=noun, loaded=noun, files=f"{noun}.json", nothing_to_train=f"the model has no {noun} to train")


# ---- the final layer norm, and nothing else --------------------------------------------------------------------------


@dataclass(frozen=True)
class NormAdapter(Adapter):
    """Weight and bias of the final layer norm."""

    @property
    def method(self):
        return NORM

    def check_model(self, config):
        if self.tensors["weight"].shape != (config.hidden_size,):
            raise UserError(f"{self.path} is of a model of another size")

    def attach(self, model):
        self.check_model(model.config)
        NORM.attach_new(model, None)
        self.load_into(model)

    def load_into(self, model):
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                getattr(model.transformer.final_layernorm, name).copy_(tensor)

    def description(self, config):
        return f"one norm of {config.hidden_size}"

    def cost(self, sizes):
        return TuningCost("final norm", 2 * sizes.hidden_size)


class NormTuning(TuningMethod):
    """The final layer norm is tuned where it stands; the base model's numbers are kept beside it."""

    name = "final-norm"
    words = _words("final norm")
    learning_rates = LearningRates(0.5, 1e-2, 1.0, "1e-2 to 1")
    marker_files = ("norm.json",)

    def read(self, files):
        name = "norm.safetensors"
        return NormAdapter(dict(files.tensors(name)), files.json("norm.json"), files.folder / name)

    def files(self, model, settings, training=None):
        return AdapterFiles({"norm.safetensors": self.state(model)}, {"norm.json": settings})

    def attach_new(self, model, settings):
        norm = model.transformer.final_layernorm
        if not hasattr(norm, "base"):
            norm.base, norm.is_off = {name: tensor.detach().clone() for name, tensor in norm.state_dict().items()}, False
        model.requires_grad_(False)
        norm.requires_grad_(True)

    def is_active(self, model):
        return hasattr(model.transformer.final_layernorm, "base") and not model.transformer.final_layernorm.is_off

    @contextmanager
    def disabled(self, model):
        norm, tuned = model.transformer.final_layernorm, self.state(model)
        settings, model.prompt_settings = model.prompt_settings, {}
        norm.load_state_dict(norm.base)
        norm.is_off = True
        try:
            yield
        finally:
            norm.load_state_dict(tuned)
            norm.is_off, model.prompt_settings = False, settings

    def detach(self, model):
        norm = model.transformer.final_layernorm
        norm.load_state_dict(norm.base)
        del norm.base
        model.prompt_settings = {}

    def state(self, model):
        return {name: tensor.detach().clone() for name, tensor in model.transformer.final_layernorm.state_dict().items()}

    def cost(self, model):
        return TuningCost("final norm", 2 * model.config.hidden_size)

    def planned_cost(self, settings, config):
        return TuningCost("final norm", 2 * config.hidden_size)


NORM = NormTuning()


# ---- every linear is another one -------------------------------------------------------------------------------------


class GatedLinear(nn.Module):
    """A frozen linear whose outputs are scaled and shifted by two trained vectors [O]."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.is_off = inner.requires_grad_(False), False
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.gain, self.shift = (nn.Parameter(torch.full((inner.out_features,), value)) for value in (1.0, 0.0))

    @property
    def weight(self):
        return self.inner.weight

    def forward(self, inputs):
        outputs = self.inner(inputs)
        return outputs if self.is_off else outputs * self.gain + self.shift


def _places(model):
    """(name, its parent, attribute) of every linear of a block."""
    for number, layer in enumerate(model.transformer.layers):
        attention, mlp = layer.attention, layer.mlp
        yield from ((f"{number}.{name}", attention, name) for name in ("query_key_value", "dense"))
        yield from ((f"{number}.{name}", mlp, name) for name in ("dense_h_to_4h", "dense_4h_to_h"))


def _gated(model):
    return {name: getattr(parent, attribute) for name, parent, attribute in _places(model)}


@dataclass(frozen=True)
class GatedAdapter(Adapter):
    """Two vectors for every linear, in a file each for all gains and all shifts."""

    @property
    def method(self):
        return GATED

    def check_model(self, config):
        if len(self.tensors) != 8 * config.num_layers:
            raise UserError(f"{self.path} is of a model of another size")

    def attach(self, model):
        self.check_model(model.config)
        GATED.attach_new(model, None)
        self.load_into(model)

    def load_into(self, model):
        with torch.no_grad():
            for name, linear in _gated(model).items():
                linear.gain.copy_(self.tensors[f"{name}.gain"])
                linear.shift.copy_(self.tensors[f"{name}.shift"])

    def description(self, config):
        return f"{4 * config.num_layers} linears"

    def cost(self, sizes):
        return TuningCost("set of gates", 2 * sizes.num_layers * sizes.linear_rows)


class GatedTuning(TuningMethod):
    """Every linear of the blocks is replaced; the one that was there hangs below the new one."""

    name = "gates"
    words = _words("set of gates")
    learning_rates = LearningRates(0.1, 1e-3, 1.0, "1e-3 to 1")
    marker_files = ("gates.json",)
    _files = {"gain": "gains.bin", "shift": "shifts.safetensors"}  # noqa: RUF012

    def read(self, files):
        tensors = {name: tensor.clone() for file in self._files.values() for name, tensor in files.tensors(file).items()}
        return GatedAdapter(tensors, files.json("gates.json")["run"], files.folder / "gains.bin")

    def files(self, model, settings, training=None):
        state = self.state(model)
        tensors = {
            file: {name: tensor for name, tensor in state.items() if name.endswith(f".{kind}")}
            for kind, file in self._files.items()
        }
        return AdapterFiles(tensors, {"gates.json": {"run": settings}})

    def attach_new(self, model, settings):
        model.requires_grad_(False)
        for _, parent, attribute in _places(model):
            linear = getattr(parent, attribute)
            linear = linear if isinstance(linear, GatedLinear) else GatedLinear(linear)
            linear.gain.requires_grad_(True)
            linear.shift.requires_grad_(True)
            setattr(parent, attribute, linear)

    def is_active(self, model):
        return all(isinstance(linear, GatedLinear) and not linear.is_off for linear in _gated(model).values())

    @contextmanager
    def disabled(self, model):
        settings, model.prompt_settings = model.prompt_settings, {}
        for linear in _gated(model).values():
            linear.is_off = True
        try:
            yield
        finally:
            model.prompt_settings = settings
            for linear in _gated(model).values():
                linear.is_off = False

    def detach(self, model):
        for _, parent, attribute in _places(model):
            setattr(parent, attribute, getattr(parent, attribute).inner)
        model.prompt_settings = {}

    def state(self, model):
        return {
            f"{name}.{kind}": getattr(linear, kind).detach().clone()
            for name, linear in _gated(model).items()
            for kind in ("gain", "shift")
        }

    def cost(self, model):
        return TuningCost("set of gates", sum(parameter.numel() for parameter in self.trained_parameters(model)))

    def planned_cost(self, settings, config):
        raise NotImplementedError


GATED = GatedTuning()
