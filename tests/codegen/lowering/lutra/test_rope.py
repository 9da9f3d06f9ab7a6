"""`lutra.rope` as compiled code: every pairing of columns, rounded where torch rounds."""

import torch

Tensor = torch.Tensor


def halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos.unsqueeze(1) + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin.unsqueeze(1)


def adjacent(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x * cos.unsqueeze(1) + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin.unsqueeze(1)


def adjacent_to_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    cos, sin = (t[..., :4].unsqueeze(1) for t in (cos, sin))
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def test_half_precision_is_rounded_where_torch_rounds_and_wider_tables_do_not_matter():
    def model(*given: Tensor) -> list[Tensor]:
        results = []
        for dtype in (torch.bfloat16, torch.float16):
            x, cos, sin = (t.to(dtype) for t in given)
            results += [rope(x, cos, sin) for rope in (halves, adjacent, adjacent_to_halves)]
            results += [adjacent(x.float(), cos, sin).to(dtype)]
        return results

    given = torch.randn(2, 3, 5, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    with torch.no_grad():
        for got, expected in zip(torch.compile(model, backend="lutra")(*given), model(*given), strict=True):
            assert torch.equal(got, expected)
