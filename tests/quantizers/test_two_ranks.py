"""Loss terms of the whole batch: two ranks with half of it each train as one with all of it."""

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from gsq_lightning import GroupedSphericalQuantizer, Quantizer, QuantizerOutput
from gsq_lightning.quantizers import LFQ


def quantizers() -> dict[str, Quantizer]:
    torch.manual_seed(0)
    return {
        "lfq": LFQ(8, inverse_temperature=0.7),
        "gsq": GroupedSphericalQuantizer(3, 10, normalization="none", entropy_weight=1.0, coding_rate_weight=1.0),
    }


def trained(quantizer: Quantizer, latent: torch.Tensor) -> QuantizerOutput:
    output = quantizer.train()(latent.requires_grad_())
    output.loss.backward()
    return output


def _share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    shares = {}
    for name, quantizer in quantizers().items():
        latent = torch.load(f"{folder}/latent.pt")[rank : rank + 1]
        terms = trained(quantizer, latent).terms
        shares[name] = (terms, latent.grad, [parameter.grad for parameter in quantizer.parameters()])
    torch.save(shares, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_ranks")
    torch.save(0.3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1)), folder / "latent.pt")
    multiprocessing.spawn(_share, args=(str(folder),), nprocs=2)
    return folder


@pytest.mark.parametrize(("name", "term"), [("lfq", "batch_entropy"), ("gsq", "coding_rate")])
def test_terms_and_gradients_are_those_of_the_whole_batch(folder: Path, name: str, term: str) -> None:
    latent, quantizer = torch.load(folder / "latent.pt"), quantizers()[name]
    terms = trained(quantizer, latent).terms
    shares = [torch.load(folder / f"{rank}.pt")[name] for rank in range(2)]
    for share in shares:
        torch.testing.assert_close(share[0][term], terms[term])
    # data-parallel training averages the gradients of the ranks
    torch.testing.assert_close(torch.cat([latent_grad for _, latent_grad, _ in shares]) / 2, latent.grad)
    for parameter, *grads in zip(quantizer.parameters(), *(grads for _, _, grads in shares), strict=True):
        torch.testing.assert_close((grads[0] + grads[1]) / 2, parameter.grad)
