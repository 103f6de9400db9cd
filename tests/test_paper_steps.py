"""Three GAN steps as the paper describes them (sections 3 and 4, appendix E.3), from formulas written here."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer, TokenizerModule
from gsq_lightning.discriminators import PatchDiscriminator
from gsq_lightning.losses import PerceptualLoss
from gsq_lightning.optim import PaperAdamW

STEPS, BATCH, GROUPS, CODES = 3, 4, 2, 16
RATE, BETAS, DECAY, EPSILON, CLIP = 1e-3, (0.9, 0.99), 0.05, 1e-8, 2.0
ADVERSARIAL, COMMITMENT, AVERAGE = 0.1, 0.25, 0.999


class Perceived(PerceptualLoss):
    """Stands for LPIPS: a distance in the features of a frozen network."""

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        kernel = torch.linspace(-1.0, 1.0, 5 * 3 * 3 * 3).view(5, 3, 3, 3)
        features = [nn.functional.conv2d(x, kernel).tanh() for x in (reconstruction, image)]
        return (features[0] - features[1]).square().mean()


def quantize(latent: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 3 and 5: groups of channels, the nearest code on the sphere, straight-through → (for the decoder, loss)."""
    batch, channels, height, width = latent.shape
    vectors = latent.view(batch, GROUPS, channels // GROUPS, height, width)
    normalized = vectors / vectors.square().sum(dim=2, keepdim=True).sqrt()
    codes = codebook / codebook.square().sum(dim=1, keepdim=True).sqrt()
    distances = (normalized.double().unsqueeze(1) - codes.double().view(1, CODES, 1, -1, 1, 1)).square().sum(dim=3)
    chosen = codebook[distances.argmin(dim=1)].permute(0, 1, 4, 2, 3)  # (B, G, d, h, w)
    codebook_loss = (chosen - normalized.detach()).square().mean()
    commitment_loss = (chosen.detach() - normalized).square().mean()
    passed = normalized + (chosen - normalized).detach()
    return passed.reshape(latent.shape), codebook_loss + COMMITMENT * commitment_loss


class AdamW:
    """Decoupled weight decay (arXiv 1711.05101, algorithm 2), after clipping by the norm of all gradients."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = list(network.parameters())
        self.first = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.second = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.steps = 0

    @torch.no_grad()
    def step(self, gradients: list[Tensor]) -> list[Tensor]:
        """Returns the clipped gradients."""
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        clipped = [gradient * min(1.0, CLIP / norm) for gradient in gradients]
        self.steps += 1
        for parameter, gradient, first, second in zip(self.parameters, clipped, self.first, self.second, strict=True):
            first.copy_(BETAS[0] * first + (1 - BETAS[0]) * gradient)
            second.copy_(BETAS[1] * second + (1 - BETAS[1]) * gradient**2)
            direction = first / (1 - BETAS[0] ** self.steps)
            scale = (second / (1 - BETAS[1] ** self.steps)).sqrt() + EPSILON
            parameter.copy_(parameter - RATE * DECAY * parameter - RATE * direction / scale)
        return clipped


class Record(Callback):
    """Losses and clipped gradients of each step."""

    def __init__(self) -> None:
        self.gradients: list[list[Tensor]] = []
        self.losses: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.gradients.append([parameter.grad.clone() for parameter in optimizer.param_groups[0]["params"]])

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        self.losses.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_three_steps_are_those_of_the_paper(tmp_path: Path) -> None:
    """Losses, gradients of both networks, weights, and their average."""
    torch.manual_seed(0)
    quantizer = GroupedSphericalQuantizer(8, CODES, GROUPS)
    tokenizer = GSQTokenizer(quantizer, (1, 2), 8, encoder_blocks=1, decoder_blocks=1, norm_groups=4)
    discriminator = PatchDiscriminator(channels=8, num_layers=1)
    for parameter in discriminator.parameters():
        parameter.data *= 4.0  # so that its gradients need clipping
    images = torch.rand(STEPS * BATCH, 3, 16, 16) * 2 - 1
    module = TokenizerModule(
        copy.deepcopy(tokenizer),
        copy.deepcopy(discriminator),
        Perceived(),
        tokenizer_optimizer=lambda parameters: PaperAdamW(parameters, lr=RATE),
        discriminator_optimizer=lambda parameters: PaperAdamW(parameters, lr=RATE),
        ema_warmup=False,
    )
    record = Record()
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[record],
    )
    trainer.fit(module, DataLoader(images, batch_size=BATCH))  # type: ignore[arg-type]

    average = [parameter.detach().clone() for parameter in tokenizer.parameters()]
    steps = {"tokenizer": AdamW(tokenizer), "discriminator": AdamW(discriminator)}
    for number, image in enumerate(images.split(BATCH)):
        quantized, quantizer_loss = quantize(tokenizer.encoder(image), tokenizer.quantizer.codebook)  # type: ignore[arg-type]
        reconstruction = tokenizer.decoder(quantized)
        # non-saturating: the mean logit of each image; hinge: all logits, halved
        adversarial = torch.log1p(torch.exp(-discriminator(reconstruction).mean(dim=(1, 2, 3)))).mean()
        generator_loss = (
            (reconstruction - image).square().mean()
            + Perceived()(reconstruction, image)
            + ADVERSARIAL * adversarial
            + quantizer_loss
        )
        # the same batch and reconstruction, before either network's update
        real, fake = discriminator(image), discriminator(reconstruction.detach())
        discriminator_loss = 0.5 * ((1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean())
        of_tokenizer = list(torch.autograd.grad(generator_loss, steps["tokenizer"].parameters))
        of_discriminator = list(torch.autograd.grad(discriminator_loss, steps["discriminator"].parameters))
        expected = [steps["tokenizer"].step(of_tokenizer), steps["discriminator"].step(of_discriminator)]
        average = [
            AVERAGE * kept + (1 - AVERAGE) * parameter.detach()
            for kept, parameter in zip(average, tokenizer.parameters(), strict=True)
        ]

        logged = record.losses[number]
        torch.testing.assert_close(torch.tensor(logged["train/loss_tokenizer"]), generator_loss.detach())
        torch.testing.assert_close(torch.tensor(logged["train/loss_discriminator"]), discriminator_loss.detach())
        for got, wanted in zip(record.gradients[2 * number : 2 * number + 2], expected, strict=True):
            largest = max(float(gradient.abs().max()) for gradient in wanted)
            for one, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 * largest)

    assert record.losses[0]["train/gradient_norm_discriminator"] > CLIP  # the test shows clipping
    assert module.ema is not None
    assert module.discriminator is not None
    for trained, by_hand in ((module.tokenizer, tokenizer), (module.discriminator, discriminator)):
        for got, value in zip(trained.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(got, value, rtol=1e-3, atol=0.05 * RATE)
    for got, value in zip(module.ema.module.parameters(), average, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-5, atol=1e-3 * RATE)
