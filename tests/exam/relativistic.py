"""A relativistic loss: each real sample is compared with a generated one, by both players."""

from torch import Tensor
from torch.nn.functional import softplus

from ganlab.methods.losses import Loss
from ganlab.types import Verdict


class Relativistic(Loss):
    """D: mean softplus(D(G(z)) - D(x));  G: mean softplus(D(x) - D(G(z))). arXiv:1807.00734, RSGAN."""

    needs = frozenset({"real_in_g"})

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        return softplus(fake.score - real.score).mean()

    def generator(self, real: Verdict | None, fake: Verdict) -> Tensor:
        assert real is not None
        return softplus(real.score - fake.score).mean()
