"""A prior run one position at a time: each layer keeps what later positions need.

A causal window splits in two. What the rows above add is known when a row begins, and is computed for the
whole row in one product; what the row's own past adds is one small product a position, read straight from
the layer's buffer. Attention keeps its keys and values. The top map and the text are projected once.

Rows are handled in tiles of fixed size, and every product, reduction and attention runs on one tile, whatever
the batch. So a sample's numbers do not depend on which samples are drawn beside it. Only element by element
functions run over all tiles at once; widths are multiples of 16, so no element ever falls into the rest of a
vector loop, where `exp` may round differently.

Legend: T tiles, R rows of a tile, C channels, N a layer's output width, A its input width, P background
channels, D_t width of a text feature, H x W the map, h x w the top map, L = H * W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.prior.layers import CausalAttention, CausalConv, GatedResidual, background
from medunifier_cli.prior.pixelsnail import Block, PixelSnail
from medunifier_cli.prior.prepared import Surroundings, bias_of, nearest, tile_rows


class CachedConv:
    """A causal window with its past rows, and the sums of the current row begun by `start_row`."""

    def __init__(self, conv: CausalConv, around: Surroundings, constants: list[Tensor]) -> None:
        """`constants` [h, w, R, N] a tile are added at each position, read by nearest neighbour."""
        height, width = around.size
        self.reach, self.kernel = conv.reach, 2 * conv.reach + 1
        self.above, self.here = around.weights[conv.above], around.weights[conv.here]
        inputs, outputs = conv.here.in_channels, conv.here.out_channels
        self.past = around.zeros(around.rows, self.reach + 1, width + 2 * self.reach, inputs)
        self.sums = around.zeros(width, around.rows, outputs)
        self.constants = constants
        self.row_of = nearest(height, constants[0].shape[0]).tolist()
        self.column_of = nearest(width, constants[0].shape[1]).to(around.device)
        taps = self.reach + (not conv.strict)
        # Views stay valid, as buffers are only ever written in place: made once, not at each position.
        self.products = [
            [
                (
                    self.sums[tile, column],
                    self.past[tile, :, -1, column : column + taps].view(around.rows, -1),
                )
                for tile in range(around.tiles)
            ]
            for column in range(width)
        ]

    def start_row(self, row: int) -> None:
        """Move the past up by a row and add what it gives to every position of row `row`."""
        for i in range(self.reach if row else 0):
            self.past[:, :, i] = self.past[:, :, i + 1]
        for sums, past, constants in zip(self.sums, self.past, self.constants, strict=True):
            torch.index_select(constants[self.row_of[row]], 0, self.column_of, out=sums)
            if row:
                windows = past[:, : self.reach].unfold(2, self.kernel, 1).permute(2, 0, 1, 4, 3)
                sums.flatten(0, 1).addmm_(windows.reshape(-1, len(self.above)), self.above)

    def put(self, column: int, x_TRA: Tensor) -> None:
        """The input at a position of the current row."""
        self.past[:, :, -1, column + self.reach] = x_TRA

    def at(self, column: int) -> Tensor:
        """The output [T, R, N] at a position, once; its window must have been put."""
        for sums, window in self.products[column]:
            sums.addmm_(window, self.here)
        return self.sums[:, column]


class CachedResidual:
    """A causal gated residual layer."""

    def __init__(self, layer: GatedResidual, around: Surroundings) -> None:
        first, second = layer.first, layer.second
        assert isinstance(first, CausalConv)
        assert isinstance(second, CausalConv)
        bias = bias_of(first.above).expand(1, 1, around.rows, -1).contiguous()
        self.first = CachedConv(first, around, [bias] * around.tiles)
        self.second = CachedConv(second, around, around.constants(layer, bias_of(second.above)))
        self.activate = layer.activate

    def start_row(self, row: int) -> None:
        """To be called before the first position of a row."""
        self.first.start_row(row)
        self.second.start_row(row)

    def at(self, column: int, x_TRC: Tensor) -> Tensor:
        """[T, R, C] -> [T, R, C]."""
        self.first.put(column, self.activate(x_TRC, -1))
        self.second.put(column, self.activate(self.first.at(column), -1))
        return x_TRC + F.glu(self.second.at(column), -1)


class PointMap:
    """A 1x1 convolution; nothing to keep."""

    def __init__(self, conv: nn.Module, around: Surroundings, constants: list[Tensor] | None = None) -> None:
        assert isinstance(conv, nn.Conv2d)
        self.weight = around.weights[conv]
        self.constant = around.zeros(around.rows, self.weight.shape[1])
        if constants is not None:
            self.constant += torch.stack(constants)[:, 0, 0]
        elif conv.bias is not None:
            self.constant[:, :, : conv.out_channels] = bias_of(conv)

    def __call__(self, x_TRA: Tensor, onto: Tensor | None = None) -> Tensor:
        """[T, R, N], added in place to `onto` where given."""
        sums = self.constant.clone() if onto is None else onto
        for tile, x_RA in zip(sums, x_TRA, strict=True):
            tile.addmm_(x_RA, self.weight)
        return sums


class PointResidual:
    """A 1x1 gated residual layer, of the attention."""

    def __init__(self, layer: GatedResidual, around: Surroundings) -> None:
        self.first = PointMap(layer.first, around)
        self.second = PointMap(layer.second, around, around.constants(layer, bias_of(layer.second)))
        self.aux = PointMap(layer.aux, around) if layer.aux is not None else None
        self.activate = layer.activate

    def __call__(self, x_TRA: Tensor, aux: Tensor | None = None) -> Tensor:
        hidden = self.first(self.activate(x_TRA, -1))
        if self.aux is not None:
            assert aux is not None
            self.aux(self.activate(aux, -1), onto=hidden)
        return x_TRA + F.glu(self.second(self.activate(hidden, -1)), -1)


class CachedAttention:
    """Causal attention with the keys and values of all earlier positions."""

    def __init__(self, attention: CausalAttention, around: Surroundings, places_LP: Tensor) -> None:
        rows, heads, width = around.rows, attention.heads, attention.width
        self.key_block = PointResidual(attention.key_block, around)
        self.query_block = PointResidual(attention.query_block, around)
        self.out_block = PointResidual(attention.out_block, around)
        self.key_value, self.query = PointMap(attention.key_value, around), PointMap(attention.query, around)
        self.places = places_LP[:, None, None].expand(-1, around.tiles, rows, -1)
        self.per_head = (around.tiles, rows, heads, width // heads)
        self.keys = around.zeros(rows, heads, len(places_LP) + 1, width // heads)
        self.values = torch.zeros_like(self.keys)
        start_key, start_value = attention.start.detach().float().view(2, heads, -1)
        self.keys[:, :, :, 0], self.values[:, :, :, 0] = start_key, start_value
        self.x = self.keys  # of the position asked last

    def at(self, position: int, x_TRC: Tensor) -> Tensor:
        """[T, R, C] -> [T, R, C] at the raster position; the codes before it must have been put."""
        self.x = x_TRC
        query = self.query(self.query_block(torch.cat((x_TRC, self.places[position]), -1)))
        mixed = torch.empty_like(query)
        seen = position + 1
        for tile, head in enumerate(query.view(self.per_head)):
            mixed[tile] = F.scaled_dot_product_attention(
                head[:, :, None], self.keys[tile, :, :, :seen], self.values[tile, :, :, :seen]
            ).flatten(1)
        return self.out_block(x_TRC, mixed)

    def put(self, position: int, code_TRC: Tensor) -> None:
        """Key and value of a position, from its code's embedding and the block's output there."""
        keyed = torch.cat((code_TRC, self.x, self.places[position]), -1)
        key, value = self.key_value(self.key_block(keyed)).chunk(2, -1)
        self.keys[:, :, :, position + 1] = key.reshape(self.per_head)
        self.values[:, :, :, position + 1] = value.reshape(self.per_head)


class CachedPrior:
    """A prior with its past. Ask `logits` and give `put` for every position in raster order."""

    def __init__(
        self,
        prior: PixelSnail,
        weights: dict[nn.Module, Tensor],
        size: tuple[int, int],
        *,
        tiles: int,
        top_codes: Tensor | None = None,
        condition: Tensor | None = None,
        drop_condition: Tensor | None = None,
    ) -> None:
        """To be made and used in evaluation mode, under `torch.inference_mode`.

        Args:
            weights: `product_weights(prior)`.
            tiles: T; R is `tile_rows` of the prior's device.
            top_codes: int64 [T, R, h, w] for a bottom prior.
            condition: [T, R, D_t]; None stands for no text in every row.
            drop_condition: bool [T, R], rows without text.
        """
        device = prior.head.weight.device
        rows = tile_rows(device)
        text: list[Tensor] | None = None
        if prior.config.text_width:
            text = []
            for tile in range(tiles):
                given = None if condition is None else condition[tile]
                dropped = None if drop_condition is None else drop_condition[tile]
                context = prior.text_context(given, dropped, rows)
                assert context is not None
                text.append(context.float())
        top = (
            None if prior.top_stack is None or top_codes is None else [prior.top_stack(t) for t in top_codes]
        )
        around = Surroundings(weights, size, rows, device, text, top, tiles)
        place = background(size, prior.head.weight)
        stem_HWC = prior.background(place)[0].float().permute(1, 2, 0) + bias_of(prior.stem.above)
        per_row = stem_HWC[:, :, None].expand(-1, -1, rows, -1).contiguous()
        self.width, self.codes = size[1], prior.config.codes
        self.table = prior.embedding.table().detach().float()
        self.stem = CachedConv(prior.stem, around, [per_row] * tiles)
        self.layers: list[CachedResidual | CachedAttention] = []
        for block in prior.blocks:
            assert isinstance(block, Block)
            self.layers += [CachedResidual(layer, around) for layer in block.gated_layers()]
            if block.attention is not None:
                self.layers.append(CachedAttention(block.attention, around, place[0].flatten(1).mT.float()))
        self.head = PointMap(prior.head, around)

    def logits(self, row: int, column: int) -> Tensor:
        """[T, R, K] at a position, given the codes put so far."""
        if column == 0:
            for cached in (self.stem, *self.layers):
                if not isinstance(cached, CachedAttention):
                    cached.start_row(row)
        x = self.stem.at(column).clone()
        for layer in self.layers:
            if isinstance(layer, CachedAttention):
                x = layer.at(row * self.width + column, x)
            else:
                x = layer.at(column, x)
        return self.head(F.elu(x))[..., : self.codes]

    def put(self, row: int, column: int, codes_TR: Tensor) -> None:
        """The codes at the position asked last."""
        embedded = F.embedding(codes_TR, self.table)
        self.stem.put(column, embedded)
        for layer in self.layers:
            if isinstance(layer, CachedAttention):
                layer.put(row * self.width + column, embedded)
