"""Run a prior one position at a time: each layer keeps what later positions need from earlier ones.

A causal window splits in two. What the rows above contribute is known when a row begins, and is computed for
the whole row in one product; what the row's own past contributes is one small product per position, read
straight from the layer's buffer. Attention keeps its keys and values. The top map and the text are projected
once.

Rows are handled in tiles of fixed size, and every product, reduction and attention runs on one tile, whatever
the batch. So a sample's numbers do not depend on which samples are computed in the same call. Only
element-wise functions run over all tiles at once; widths are multiples of 16, so no element ever falls into
the remainder of a vector loop, where `exp` may round differently.

The buffer of a convolution while position (row, column) of the map is computed, kernel 5 (reach 2):

                        columns of the map, with `reach` columns of zero padding on both sides
                        . .  0 1 2 ... column ...  W-1  . .
    past[..., 0]  row-2  0 0  v v v v v v v v v v v v v  0 0     v: valid, moved up from the last line by
    past[..., 1]  row-1  0 0  v v v v v v v v v v v v v  0 0        `start_row`; zeros above the map
    past[..., 2]  row    0 0  v v v v v v o o o o o o o  0 0     v: written by `put` at this row's columns
                                        |                        o: stale, left over from the row before
                              the column of the last `put`

No product reads an `o`: `at(column)` reads the last line up to its own column (up to the one before for the
strict first layer), and the whole lines above belong to rows that are complete.

Legend: T tiles, R rows of a tile, C channels, N a layer's output width, A its input width, P background
channels, D_t width of a text feature, H x W the map, h x w the top map, L = H * W.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.prior.layers import CausalAttention, CausalConv, GatedResidual, background
from medunifier_cli.prior.pixelsnail import Block, PixelSnail
from medunifier_cli.prior.prepared import Conditioning, bias_of, nearest


class CachedConv:
    """A causal window over the layer's past inputs; `start_row` begins the sums that `at` completes."""

    def __init__(self, conv: CausalConv, conditioning: Conditioning, constants: list[Tensor]) -> None:
        """`constants` [h, w, R, N] of each tile are added at each position, read by nearest neighbour."""
        height, width = conditioning.size
        self.reach, self.kernel = conv.reach, 2 * conv.reach + 1
        self.above, self.here = conditioning.weights[conv.above], conditioning.weights[conv.here]
        inputs, outputs = conv.here.in_channels, conv.here.out_channels
        # [T, R, reach + 1, W + 2 reach, A], see the drawing above. Channels come last, so that a window
        # within one row is contiguous. Written by `put` and moved up by `start_row`; the padding stays zero
        # forever.
        self.past = conditioning.zeros(conditioning.rows, self.reach + 1, width + 2 * self.reach, inputs)
        # [T, W, R, N]. After `start_row` each column holds constants + rows above; `at(column)` adds the
        # row's own past to that column, which is then final. Columns further right are still incomplete.
        self.sums = conditioning.zeros(width, conditioning.rows, outputs)
        self.constants = constants
        self.row_of = nearest(height, constants[0].shape[0]).tolist()
        self.column_of = nearest(width, constants[0].shape[1]).to(conditioning.device)
        # The strict first layer leaves out the position itself: its input there is the code to be sampled.
        taps = self.reach + (not conv.strict)
        # Views stay valid, as buffers are only ever written in place: one list for all positions. One
        # product per tile instead of one batched product: a batched one could choose its summation order by
        # the number of tiles, and then a sample's bits would depend on the batch.
        self.products = [
            [
                (
                    self.sums[tile, column],
                    self.past[tile, :, -1, column : column + taps].view(conditioning.rows, -1),
                )
                for tile in range(conditioning.tiles)
            ]
            for column in range(width)
        ]

    def start_row(self, row: int) -> None:
        """Move the past up by a row and add its contribution to every position of row `row`."""
        # Line by line and upwards, so that no line is overwritten before it is copied. The last line keeps
        # its values, stale from now on; `put` overwrites each one before `at` reads it.
        for i in range(self.reach if row else 0):
            self.past[:, :, i] = self.past[:, :, i + 1]
        for sums, past, constants in zip(self.sums, self.past, self.constants, strict=True):
            # Overwrites the sums of the previous row; this is why `at` may be called only once per position.
            torch.index_select(constants[self.row_of[row]], 0, self.column_of, out=sums)
            if row:  # above the first row lies only padding, whose contribution is zero
                # All W windows at once, [R, reach, W, A, kernel] -> [W * R, reach * kernel * A]: this copy is
                # the price of one large product in place of W small ones.
                windows = past[:, : self.reach].unfold(2, self.kernel, 1).permute(2, 0, 1, 4, 3)
                sums.flatten(0, 1).addmm_(windows.reshape(-1, len(self.above)), self.above)

    def put(self, column: int, x_TRA: Tensor) -> None:
        """Write the input at a position of the current row."""
        self.past[:, :, -1, column + self.reach] = x_TRA

    def at(self, column: int) -> Tensor:
        """The output [T, R, N] at a position; call it once, after `put` for every input in its window."""
        for sums, window in self.products[column]:
            sums.addmm_(window, self.here)
        return self.sums[:, column]  # a view: `start_row` of the next row overwrites it


class CachedResidual:
    """A causal gated residual layer; all its memory is that of its two windows."""

    def __init__(self, layer: GatedResidual, conditioning: Conditioning) -> None:
        first, second = layer.first, layer.second
        assert isinstance(first, CausalConv)
        assert isinstance(second, CausalConv)
        bias = bias_of(first.above).expand(1, 1, conditioning.rows, -1).contiguous()
        self.first = CachedConv(first, conditioning, [bias] * conditioning.tiles)
        # Text and top map enter before the gate (van den Oord et al. 2016, equation 4), so they are constants
        # of the second window.
        self.second = CachedConv(second, conditioning, conditioning.constants(layer, bias_of(second.above)))
        self.activate = layer.activate

    def start_row(self, row: int) -> None:
        """Call before the first position of a row."""
        self.first.start_row(row)
        self.second.start_row(row)

    def at(self, column: int, x_TRC: Tensor) -> Tensor:
        """[T, R, C] -> [T, R, C]."""
        # The second window is as wide as the first, so it needs its own past of activated hidden values: what
        # the first layer gave at earlier positions never changes, as no later code can reach them.
        self.first.put(column, self.activate(x_TRC, -1))
        self.second.put(column, self.activate(self.first.at(column), -1))
        return x_TRC + F.glu(self.second.at(column), -1)  # dropout is left out: evaluation mode


class PointMap:
    """A 1x1 convolution; it looks at one position only and keeps nothing."""

    def __init__(
        self, conv: nn.Module, conditioning: Conditioning, constants: list[Tensor] | None = None
    ) -> None:
        assert isinstance(conv, nn.Conv2d)
        self.weight = conditioning.weights[conv]
        self.constant = conditioning.zeros(conditioning.rows, self.weight.shape[1])
        if constants is not None:
            # [0, 0]: attention layers take no top map, so their constants are the same everywhere (h = w =
            # 1).
            self.constant += torch.stack(constants)[:, 0, 0]
        elif conv.bias is not None:
            # The columns that pad N to a multiple of 8 stay zero.
            self.constant[:, :, : conv.out_channels] = bias_of(conv)

    def __call__(self, x_TRA: Tensor, onto: Tensor | None = None) -> Tensor:
        """[T, R, N], added in place to `onto` where given."""
        sums = self.constant.clone() if onto is None else onto
        for tile, x_RA in zip(sums, x_TRA, strict=True):  # one product per tile, as in `CachedConv`
            tile.addmm_(x_RA, self.weight)
        return sums


class PointResidual:
    """A 1x1 gated residual layer, as used inside the attention."""

    def __init__(self, layer: GatedResidual, conditioning: Conditioning) -> None:
        self.first = PointMap(layer.first, conditioning)
        self.second = PointMap(
            layer.second, conditioning, conditioning.constants(layer, bias_of(layer.second))
        )
        self.aux = PointMap(layer.aux, conditioning) if layer.aux is not None else None
        self.activate = layer.activate

    def __call__(self, x_TRA: Tensor, aux: Tensor | None = None) -> Tensor:
        """[T, R, A] -> [T, R, A]."""
        hidden = self.first(self.activate(x_TRA, -1))
        if self.aux is not None:
            assert aux is not None
            self.aux(self.activate(aux, -1), onto=hidden)
        return x_TRA + F.glu(self.second(self.activate(hidden, -1)), -1)


class CachedAttention:
    """Causal attention with the keys and values of all earlier positions."""

    def __init__(self, attention: CausalAttention, conditioning: Conditioning, background_LP: Tensor) -> None:
        rows, heads, width = conditioning.rows, attention.heads, attention.width
        self.key_block = PointResidual(attention.key_block, conditioning)
        self.query_block = PointResidual(attention.query_block, conditioning)
        self.out_block = PointResidual(attention.out_block, conditioning)
        self.key_value = PointMap(attention.key_value, conditioning)
        self.query = PointMap(attention.query, conditioning)
        self.background = background_LP[:, None, None].expand(-1, conditioning.tiles, rows, -1)
        self.per_head = (conditioning.tiles, rows, heads, width // heads)
        # [T, R, heads, L + 1, A / heads]. Index 0 is the learned start, written here; index p + 1 is raster
        # position p, written by `put(p)`. While position p is computed, 0 to p are valid, the rest is zero.
        self.keys = conditioning.zeros(rows, heads, len(background_LP) + 1, width // heads)
        self.values = torch.zeros_like(self.keys)
        start_key, start_value = attention.start.detach().float().view(2, heads, -1)
        self.keys[:, :, :, 0], self.values[:, :, :, 0] = start_key, start_value
        # Input of the position computed last: written by `at`, read by the `put` of the same position, once
        # its code is known. The first value is a placeholder that nothing reads.
        self.x = self.keys

    def at(self, position: int, x_TRC: Tensor) -> Tensor:
        """[T, R, C] -> [T, R, C] at the raster position; the codes before it must have been put."""
        self.x = x_TRC
        query = self.query(self.query_block(torch.cat((x_TRC, self.background[position]), -1)))
        mixed = torch.empty_like(query)
        # The start and the positions before this one. Slicing replaces the causal mask of the training pass:
        # what lies behind is not yet written.
        valid = position + 1
        # One tile at a time: a fused kernel may split its reduction over the keys by the batch it is given.
        for tile, head in enumerate(query.view(self.per_head)):
            mixed[tile] = F.scaled_dot_product_attention(
                head[:, :, None], self.keys[tile, :, :, :valid], self.values[tile, :, :, :valid]
            ).flatten(1)
        return self.out_block(x_TRC, mixed)

    def put(self, position: int, code_TRC: Tensor) -> None:
        """Key and value of a position, from its code's embedding and the block's output there."""
        # Not in `at`: keys contain the code at the position itself, which is sampled from the logits that
        # `at` leads to. Hence the shift by one that `CausalAttention.forward` makes, too.
        keyed = torch.cat((code_TRC, self.x, self.background[position]), -1)
        key, value = self.key_value(self.key_block(keyed)).chunk(2, -1)
        self.keys[:, :, :, position + 1] = key.reshape(self.per_head)
        self.values[:, :, :, position + 1] = value.reshape(self.per_head)


class CachedPrior:
    """A prior with its past: call `logits`, then `put`, for every position in raster order."""

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
        """Make and use it in evaluation mode, under `torch.inference_mode`.

        Args:
            weights: `product_weights(prior)`.
            tiles: T; R is `tile_rows` of the prior's device.
            top_codes: int64 [T, R, h, w] for a bottom prior.
            condition: [T, R, D_t]; None means no text in any row.
            drop_condition: bool [T, R], rows without text.
        """
        # The tile axis costs a loop around every product, and it is worth it: the numbers of a tile of 8 rows
        # are the same alone or among others (tests/parity/test_sampling.py), and threads can share out the
        # tiles (benchmarks/sampling.py). Plain batched products would lose both.
        conditioning = Conditioning.of(
            prior, weights, size, tiles, top_codes=top_codes, condition=condition, drop=drop_condition
        )
        place = background(size, prior.head.weight)
        # Background and bias depend on the position alone: they are the stem's constants, [H, W, R, N].
        stem_HWC = prior.background(place)[0].float().permute(1, 2, 0) + bias_of(prior.stem.above)
        per_row = stem_HWC[:, :, None].expand(-1, -1, conditioning.rows, -1).contiguous()
        self.width, self.codes = size[1], prior.config.codes
        # Every code's vector, so that embedding a sampled code is a lookup even behind a linear map.
        self.table = prior.embedding.table().detach().float()
        self.stem = CachedConv(prior.stem, conditioning, [per_row] * tiles)
        self.layers: list[CachedResidual | CachedAttention] = []
        for block in prior.blocks:
            assert isinstance(block, Block)
            self.layers += [CachedResidual(layer, conditioning) for layer in block.gated_layers()]
            if block.attention is not None:
                background_LP = place[0].flatten(1).mT.float()
                self.layers.append(CachedAttention(block.attention, conditioning, background_LP))
        self.head = PointMap(prior.head, conditioning)

    def logits(self, row: int, column: int) -> Tensor:
        """[T, R, K] at a position, given the codes put so far."""
        if column == 0:
            # All layers at once is safe: the rows above are complete in every layer. Attention has no rows.
            for cached in (self.stem, *self.layers):
                if not isinstance(cached, CachedAttention):
                    cached.start_row(row)
        # A contiguous copy: the buffer's column is a strided view, and element-wise functions follow.
        x = self.stem.at(column).clone()
        for layer in self.layers:
            if isinstance(layer, CachedAttention):
                x = layer.at(row * self.width + column, x)
            else:
                x = layer.at(column, x)
        return self.head(F.elu(x))[..., : self.codes]  # without the columns that pad K to a multiple of 8

    def put(self, row: int, column: int, codes_TR: Tensor) -> None:
        """Give the codes at the position whose logits were computed last."""
        embedded = F.embedding(codes_TR, self.table)
        # Only these read codes. Every other layer has already stored its input at this position, in `at`.
        self.stem.put(column, embedded)
        for layer in self.layers:
            if isinstance(layer, CachedAttention):
                layer.put(row * self.width + column, embedded)
