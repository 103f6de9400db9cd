import numpy as np
import torch

from gsq_lightning.quantizers.gradients import rotate_and_scale, straight_through


def rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rotation in the plane of two unit vectors that takes one onto the other (Rodrigues)."""
    cosine = source @ target
    orthogonal = target - cosine * source
    orthogonal /= np.linalg.norm(orthogonal)
    angle = np.arccos(np.clip(cosine, -1, 1))
    plane = np.stack([source, orthogonal])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.eye(len(source)) + plane.T @ (turn - np.eye(2)) @ plane


def test_rotation_trick_by_an_explicit_rotation() -> None:
    latents = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    codes, gradient = torch.randn(2, 6, 5, dtype=torch.float64)
    value = rotate_and_scale(latents, codes)
    assert torch.equal(value, codes)
    value.backward(gradient)
    assert latents.grad is not None
    rows = (x.numpy() for x in (latents.detach(), codes, gradient, latents.grad))
    for z, q, g, got in zip(*rows, strict=True):
        turn = rotation(z / np.linalg.norm(z), q / np.linalg.norm(q))
        np.testing.assert_allclose(turn @ z * np.linalg.norm(q) / np.linalg.norm(z), q, atol=1e-12)
        np.testing.assert_allclose(got, np.linalg.norm(q) / np.linalg.norm(z) * turn.T @ g, atol=1e-12)


def test_rotation_trick_passes_straight_where_no_rotation_is_defined() -> None:
    latents = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])
    gradient = torch.tensor([[0.3, 0.4]]).expand(4, 2)
    rotate_and_scale(latents, codes).backward(gradient)
    assert latents.grad is not None
    assert torch.equal(latents.grad[:3], gradient[:3])
    torch.testing.assert_close(latents.grad[3], gradient[3] * 1.5)  # the same direction: scaled alone


def test_straight_through_leaves_the_codes_without_gradient() -> None:
    latents, codes = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    value = straight_through(latents, codes)
    assert torch.equal(value, codes)
    value.sum().backward()
    assert codes.grad is None
    assert torch.equal(latents.grad, torch.ones(3, 2))  # type: ignore[arg-type]
