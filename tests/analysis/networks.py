"""Networks of other people: each maps (N, 8) to (N, 3) and drops a lot in training mode, in a way of its own."""

import torch
import torch.nn.functional as F
from torch import nn

from cifar_lightning import DeepMLP, alpha_dropout


class Beside(nn.Module):
    """Functional dropout beside a module's that drops nearly nothing."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 3), nn.Dropout(1e-4)

    def forward(self, x):
        return self.linear(F.dropout(self.dropout(x), 0.5, self.training))


class Functional(nn.Module):
    """Functional dropout alone, in place, as a keyword, beside a batch normalization."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(F.dropout(self.norm(x), p=0.4, training=self.training, inplace=True))


class Attention(nn.Module):
    """Attention whose dropout depends on the mode of the module that calls it."""

    def __init__(self):
        super().__init__()
        self.query, self.output = nn.Linear(1, 4), nn.Linear(32, 3)

    def forward(self, x):
        q = self.query(x.unsqueeze(2))
        p = 0.5 if self.training else 0.0
        return self.output(F.scaled_dot_product_attention(q, q, q, dropout_p=p).flatten(1))


class ByHand(nn.Module):
    """Dropout written by hand, and a helper without a module."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(x * torch.bernoulli(torch.full_like(x, 0.5)) * 2 if self.training else x)


class OurFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(alpha_dropout(x, 0.4, self.training, inplace=True))


class ByMethod(nn.Module):
    """A part that is run by its method, so that it is never called as a module."""

    class Part(nn.Module):
        def encode(self, x):
            return F.dropout(x, 0.5, self.training)

    def __init__(self):
        super().__init__()
        self.part, self.linear = self.Part(), nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(self.part.encode(x))


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.output = layer(4, 6, num_layers=2, dropout=0.5, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return 20 * self.output(self.layer(x.unflatten(1, (2, 4)))[0][:, -1])


class Residual(nn.Module):
    """A module that is no chain."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout = nn.Linear(8, 3), nn.Dropout(0.4)

    def forward(self, x):
        return self.linear(self.dropout(x)) + self.linear(x)


class Scaled(DeepMLP):
    def forward(self, x):
        return super().forward(x) * 3


class Renamed(DeepMLP):
    """Its layers in a row are no longer what its forward pass computes, though that is DeepMLP's."""

    def as_sequential(self):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.1), self.output)


class Reversed(nn.Sequential):
    def forward(self, x):
        return super().forward(x.flip(1))


class Called(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x.flip(1))


class MultiHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.output = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = x.unflatten(1, (2, 4))
        return self.output(self.attention(x, x, x, need_weights=False)[0].flatten(1)) * 4


def encoder(layers=1, **options):
    layer = nn.TransformerEncoderLayer(4, 2, 16, dropout=0.5, batch_first=True, **options)
    middle = layer if layers == 1 else nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
    return nn.Sequential(nn.Unflatten(1, (2, 4)), middle, nn.Flatten(1), nn.Linear(8, 3))


def patched():
    """A Sequential whose forward pass was replaced on the instance."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))
    forward = net.forward
    net.forward = lambda x: -forward(x)
    return net


def deep(cls=DeepMLP):
    return cls(8, 3, [16, 16], activation="relu", init="he_normal", dropout="standard", dropout_p=0.4)


NETWORKS = {
    "beside": Beside,
    "functional": Functional,
    "inside a Sequential": lambda: nn.Sequential(nn.Linear(8, 8), Functional()),
    "attention": Attention,
    "by hand": ByHand,
    "our function": OurFunction,
    "by a method": ByMethod,
    "LSTM": lambda: Recurrent(nn.LSTM),
    "GRU": lambda: Recurrent(nn.GRU),
    "RNN": lambda: Recurrent(nn.RNN),
    "residual": Residual,
    "forward overridden": lambda: deep(Scaled),
    "as_sequential overridden": lambda: deep(Renamed),
    "Sequential overridden": lambda: Reversed(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    "call overridden": lambda: Called(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3)),
    "forward of an instance": patched,
    "multi-head attention": MultiHead,
    "encoder layer": encoder,
    "encoder layer, norm first": lambda: encoder(norm_first=True),
    "encoder": lambda: encoder(2),
    "feature dropout": lambda: nn.Sequential(
        nn.Unflatten(1, (4, 2)), nn.Dropout1d(0.5), nn.FeatureAlphaDropout(0.2), nn.Flatten(), nn.Linear(8, 3)
    ),
    "random pooling": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)),
        nn.FractionalMaxPool2d((1, 2), (2, 2)),
        nn.Dropout(0.4),
        nn.Flatten(),
        nn.Linear(4, 3),
    ),
    "deep MLP": deep,
    "traced": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3))),
}
