"""The graphs that docs/deployment.md makes."""

from pathlib import Path

import pytest
import torch

from gsq_lightning import GroupedSphericalQuantizer, GSQTokenizer
from gsq_lightning.quantizers.lookup import nearest_code
from gsq_lightning.quantizers.lookup.dense import dense_nearest_code

PAGE = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text("utf-8")
CODE = PAGE.split("```py\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def tokenizer() -> GSQTokenizer:
    torch.manual_seed(0)
    quantizer = GroupedSphericalQuantizer(8, 32, 2)
    return GSQTokenizer(quantizer, (1, 2), 8, 1, [0, 0, 2], middle_attention=True, norm_groups=4).eval()


def test_exported_graphs_take_other_batches_and_sizes(
    tokenizer: GSQTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained("my-tokenizer")
    exec(CODE, {})
    encode, decode = (torch.export.load(f"{name}.pt2").module() for name in ("encode", "decode"))
    for shape in ((2, 3, 8, 12), (3, 3, 20, 4)):
        image = torch.rand(shape) * 2 - 1
        with torch.no_grad():
            indices = encode(image)
            assert torch.equal(indices, tokenizer.encode_indices(image))
            torch.testing.assert_close(decode(indices), tokenizer(image), atol=1e-5, rtol=1e-5)
    assert len(indices.unique()) > 5


def test_compiled_without_a_graph_break(tokenizer: GSQTokenizer) -> None:
    image = torch.rand(2, 3, 8, 8) * 2 - 1

    @torch.compile(backend="eager", fullgraph=True)
    def reconstruct(image: torch.Tensor) -> torch.Tensor:
        return tokenizer.decode_indices(tokenizer.encode_indices(image))

    with torch.no_grad():
        torch.testing.assert_close(reconstruct(image), tokenizer(image))


@pytest.mark.parametrize(("dimension", "codebook_size"), [(1, 5000), (2, 20000), (8, 3000), (32, 500)])
def test_the_dense_search_finds_the_nearest_codes(dimension: int, codebook_size: int) -> None:
    points, codes = torch.randn(300, dimension), torch.randn(codebook_size, dimension)
    if dimension > 1:
        points, codes = (torch.nn.functional.normalize(vectors, dim=1) for vectors in (points, codes))
    points[7, 0], codes[3, 0] = torch.nan, torch.nan
    assert torch.equal(dense_nearest_code(points, codes), nearest_code(points, codes, "brute"))
