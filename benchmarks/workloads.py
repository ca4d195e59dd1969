"""The workloads of the comparison, and the data, weights and orders that every library is given."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Workload:
    """One epoch over `n` samples of a softmax classifier; Nesterov where the momentum is not 0."""

    n: int
    sizes: tuple
    batch: int
    activation: str | None = "relu"
    momentum: float = 0.9
    lr: float = 0.01
    weight_decay: float = 1e-4

    def __str__(self):
        rule = "sgd" if self.momentum == 0 else f"nesterov {self.momentum}"
        layers = "-".join(map(str, self.sizes))
        return f"{self.n:,} x {layers} {self.activation or 'linear'}, {rule}, batch {self.batch}"

    @property
    def operations(self):
        """Floating-point operations of the products of an epoch; the first layer has no input gradient."""
        pairs = list(zip(self.sizes, self.sizes[1:], strict=False))
        return 2 * self.n * sum(a * b * (3 if i else 2) for i, (a, b) in enumerate(pairs))

    def data(self):
        """X (n, features) float32 in [0, 1], labels of a random linear teacher."""
        rng = np.random.default_rng(0)
        X = rng.random((self.n, self.sizes[0]), np.float32)
        teacher = rng.standard_normal((self.sizes[0], self.sizes[-1]), np.float32)
        return X, np.argmax((X - 0.5) @ teacher, axis=1)

    def weights(self):
        """Glorot-uniform weights (out, in), float32."""
        rng = np.random.default_rng(1)
        return [
            ((rng.random((b, a)) * 2 - 1) * np.sqrt(6 / (a + b))).astype(np.float32)
            for a, b in zip(self.sizes, self.sizes[1:], strict=False)
        ]

    def order(self, epoch):
        """The epoch's order of the samples: that of a Trainer with seed 0."""
        # by a worker's fastopt, which need not be here
        from fastopt import reference

        return reference._shuffle(0, epoch, self.n)


# a smaller rate where training at 0.01 is unstable and magnifies the last bits, in which the libraries differ
WORKLOADS = {
    "W1": Workload(60_000, (784, 64, 10), 128, "sigmoid", momentum=0.0),
    "W2": Workload(60_000, (784, 64, 64, 10), 128, lr=1e-3),
    "W3": Workload(20_000, (784, 512, 512, 10), 128, lr=1e-3),
    "W4": Workload(5_120, (1024, 2048, 2048, 1000), 256),
    "W5": Workload(14_376, (64, 32, 10), 32),
    "W6": Workload(20_000, (20, 16, 2), 8, momentum=0.0),
    "L1": Workload(60_000, (784, 10), 256, None),
    "L2": Workload(60_000, (784, 10), 32, None, momentum=0.0),
    "L3": Workload(3_000, (3072, 3), 32, None, lr=1e-4),
}
