"""A bidirectional transformer over the codes of both levels, of which some are hidden (Chang et al. 2022).

The bottom map is twice as wide as the top one: each top code lies over a square of 2 x 2 bottom codes. The
five codes of such a cell enter as one token and leave as five distributions. So a sequence is as long as the
top map is large, a fifth of the codes. Level and corner of a code are its slot in the cell (0 top; 1 to 4
bottom, in raster order), and each slot has maps of its own in and out; each cell has a learned vector for its
place, and each code of it a learned bias over the K codes. Text is a sequence of states, read by
cross-attention.

Letters: B rows, T top edge, G = 2 T bottom edge, P = T * T cells, S = 5 slots, K codes, C width, E code
width, D text width, M tokens of the longest text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.prior.contract import TextStates
from medunifier_cli.prior.masked.shape import MaskedShape

SLOTS = 5
"""S: a top code and the 2 x 2 bottom codes under it."""
LEVELS = (slice(0, 1), slice(1, 5))
"""Slots of the top code and of the bottom codes."""


def to_cells(top_BTT: Tensor, bottom_BGG: Tensor) -> Tensor:
    """Maps of both levels -> [B, P, S]."""
    batch, edge, _ = top_BTT.shape
    squares = bottom_BGG.view(batch, edge, 2, edge, 2).transpose(2, 3).reshape(batch, edge * edge, 4)
    return torch.cat((top_BTT.view(batch, -1, 1), squares), 2)


def to_maps(cell_BPS: Tensor) -> tuple[Tensor, Tensor]:
    """[B, P, S] -> maps [B, T, T] and [B, G, G]; undoes `to_cells`."""
    batch, cells, _ = cell_BPS.shape
    edge = round(cells**0.5)
    squares = cell_BPS[:, :, 1:].reshape(batch, edge, edge, 2, 2).transpose(2, 3)
    return cell_BPS[:, :, 0].reshape(batch, edge, edge), squares.reshape(batch, 2 * edge, 2 * edge)


class Attention(nn.Module):
    """Multi-head attention of cells to cells, or to the tokens of a text."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def keys_values(self, x_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, C] -> keys and values [B, heads, L, C / heads]."""
        k, v = (self._by_head(part) for part in self.kv(x_BLC).chunk(2, 2))
        return k, v

    def forward(
        self, x_BPC: Tensor, keys_values: tuple[Tensor, Tensor], seen: Tensor | None = None
    ) -> Tensor:
        """[B, P, C] -> [B, P, C]; `seen` bool [B, 1, 1, L] are the keys that may be looked at."""
        mixed = F.scaled_dot_product_attention(self._by_head(self.q(x_BPC)), *keys_values, attn_mask=seen)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x_BLC: Tensor) -> Tensor:
        return x_BLC.view(*x_BLC.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Attention to the other cells, then to the text, then a feed-forward network; norms come first."""

    def __init__(self, shape: MaskedShape) -> None:
        super().__init__()
        width = shape.width
        self.norm_self, self.attention = nn.LayerNorm(width), Attention(width, shape.heads)
        self.norm_text = nn.LayerNorm(width) if shape.text_width else None
        self.text = Attention(width, shape.heads) if shape.text_width else None
        self.norm_wide = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, text: Text | None) -> Tensor:
        """[B, P, C] -> [B, P, C]."""
        normed = self.norm_self(x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed)))
        if self.text is not None and self.norm_text is not None:
            assert text is not None
            x = x + self.dropout(self.text(self.norm_text(x), text.of(self), text.seen))
        hidden = F.gelu(self.up(self.norm_wide(x)))
        out: Tensor = x + self.dropout(self.down(self.dropout(hidden)))
        return out


class Text:
    """What cross-attention reads of the texts of B rows, computed once for all rounds of decoding."""

    def __init__(self, blocks: list[Block], tokens_BMC: Tensor, seen: Tensor) -> None:
        self.seen = seen
        self._keys_values = {
            block: block.text.keys_values(tokens_BMC) for block in blocks if block.text is not None
        }

    def of(self, block: Block) -> tuple[Tensor, Tensor]:
        """Keys and values of a block."""
        return self._keys_values[block]

    def twice(self) -> Text:
        """For 2 B rows: these, and the same once more."""
        doubled = Text([], self.seen, torch.cat((self.seen, self.seen)))
        doubled._keys_values = {
            block: (torch.cat((k, k)), torch.cat((v, v))) for block, (k, v) in self._keys_values.items()
        }
        return doubled


class Vectors(nn.Module):
    """Codes known by the quantiser's vectors, so that what is learned of one serves its neighbours.

    A code is used at few places, and most of its vector says which. So what is taken of it is its distance
    from the mean vector of those places: codes that mean the same at two places have the same.
    """

    def __init__(self, codes: int, vector_width: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        # set by `set_from`; kept in checkpoints, as later runs do not see the training codes
        self.register_buffer("top_KW", torch.zeros(codes + 1, vector_width))
        self.register_buffer("bottom_KW", torch.zeros(codes + 1, vector_width))
        self.books: tuple[Tensor, Tensor] | None = None
        self.enter = nn.ModuleList(nn.Linear(vector_width, inner, bias=False) for _ in LEVELS)
        self.leave = nn.ModuleList(nn.Linear(vector_width, inner, bias=False) for _ in LEVELS)

    def set_from(self, cell_nPS: Tensor) -> None:
        """Take the places of codes from those of the training split."""
        assert self.books is not None, "`set_codebooks` comes first"
        for book_KW, level, out_KW in zip(self.books, LEVELS, self._levels(), strict=True):
            code_nL = cell_nPS[:, :, level].flatten(1)
            out_KW.zero_()
            out_KW[:-1] = _from_place(book_KW, code_nL).to(out_KW)

    def read(self) -> list[Tensor]:
        """What either level's codes add to their embeddings, [K + 1, E]; 0 for a hidden code."""
        return [linear(vector) for linear, vector in zip(self.enter, self._levels(), strict=True)]

    def told(self, level: int) -> Tensor:
        """What a level's codes add to the table of the logits, [K, E]."""
        vector_KW = self._levels()[level][:-1]
        # of unit length, as the table
        out: Tensor = self.leave[level](vector_KW) * self.inner**-0.5
        return out

    def _levels(self) -> tuple[Tensor, Tensor]:
        return self.get_buffer("top_KW"), self.get_buffer("bottom_KW")


def _from_place(book_KW: Tensor, code_nL: Tensor) -> Tensor:
    """Vectors less the mean vector of the places that a code is used at, [K, W], of unit variance in use.

    0 for a code that is not used.
    """
    book_KW, places, size = book_KW.double(), code_nL.shape[1], len(book_KW)
    numbers = code_nL + size * torch.arange(places)
    count_LK = torch.bincount(numbers.flatten(), minlength=places * size).view(places, size).double()
    mean_LW = count_LK @ book_KW / len(code_nL)
    used_K = count_LK.sum(0)
    from_place = book_KW - count_LK.T @ mean_LW / used_K.clamp_min(1)[:, None]
    from_place[used_K == 0] = 0
    variance = (used_K[:, None] * from_place.square()).sum() / used_K.sum() / book_KW.shape[1]
    return from_place / variance.sqrt().clamp_min(1e-12)


class MaskedNetwork(nn.Module):
    """Codes of which some are hidden, and texts -> logits of every code."""

    def __init__(self, shape: MaskedShape) -> None:
        super().__init__()
        self.shape = shape
        width, inner, self.cells = shape.width, shape.width // 2, shape.top_edge**2
        # one row more than there are codes: the last one stands for a hidden code
        self.top = nn.Embedding(shape.codes + 1, inner)
        self.bottom = nn.Embedding(shape.codes + 1, inner)
        self.vectors = Vectors(shape.codes, shape.codebook_width, inner) if shape.codebook_width else None
        self.enter = nn.Linear(SLOTS * inner, width)
        self.place = nn.Parameter(torch.randn(self.cells, width) * 0.5)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, SLOTS * inner)
        self.norm_code = nn.LayerNorm(inner)
        self.bias = nn.Parameter(torch.zeros(self.cells, SLOTS, shape.codes))
        if shape.text_width:
            self.norm_states = nn.LayerNorm(shape.text_width)
            self.text_in = nn.Linear(shape.text_width, width)
            # stands before every text: all there is to look at where the text is dropped
            self.no_text = nn.Parameter(torch.randn(width))
        self._initialise()

    def _initialise(self) -> None:
        """Codes, places and texts enter at unit variance, and what the blocks add to them begins small.

        With PyTorch's own initialisation codes enter at a tenth of what the first block adds.
        """
        for table in (self.top, self.bottom):
            nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                added = name.endswith((".out", ".down"))
                scale = (3 * len(self.blocks)) ** -0.5 if added else 1.0
                nn.init.normal_(module.weight, std=scale * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def hidden(self) -> int:
        """The number that stands for a hidden code."""
        return self.shape.codes

    def keys_of_text(self, tokens: TextStates | None, drop_B: Tensor | None, batch: int) -> Text | None:
        """What the blocks read of the texts, or None for a network without text.

        Args:
            tokens: None for no text in any row.
            drop_B: bool, rows whose text is not seen.
            batch: B.
        """
        if not self.shape.text_width:
            return None
        rows = self.no_text.expand(batch, 1, -1)
        seen = torch.ones(batch, 1, dtype=torch.bool, device=rows.device)
        if tokens is not None:
            state_BMC = self.text_in(self.norm_states(tokens.state_BMD.to(self.no_text.dtype)))
            place_M = torch.arange(state_BMC.shape[1], device=rows.device)
            told = place_M < tokens.length_B[:, None]
            if drop_B is not None:
                told = told & ~drop_B[:, None]
            rows, seen = torch.cat((rows.to(state_BMC.dtype), state_BMC), 1), torch.cat((seen, told), 1)
        return Text(self._blocks(), rows, seen[:, None, None])

    def body(self, cell_BPS: Tensor, text: Text | None) -> Tensor:
        """Codes, hidden ones as number K, int64 [B, P, S] -> what each code is told from, [B, P, S, E]."""
        # times sqrt(E): a table of unit length serves the logits, one of unit variance the blocks
        scale = self.top.embedding_dim**0.5
        if self.vectors is None:
            codes = torch.cat((self.top(cell_BPS[:, :, :1]), self.bottom(cell_BPS[:, :, 1:])), 2) * scale
        else:
            top, bottom = (
                table.weight * scale + vector
                for table, vector in zip((self.top, self.bottom), self.vectors.read(), strict=True)
            )
            parts = (F.embedding(cell_BPS[:, :, :1], top), F.embedding(cell_BPS[:, :, 1:], bottom))
            codes = torch.cat(parts, 2)
        x = self.enter(codes.flatten(2)) + self.place
        for block in self._blocks():
            x = block(x, text)
        told = F.gelu(self.leave(self.norm(x)))
        out: Tensor = self.norm_code(told.view(*told.shape[:2], SLOTS, -1))
        return out

    def top_logits(self, out_BPSE: Tensor) -> Tensor:
        """[B, P, K], float32."""
        logits = out_BPSE[:, :, 0] @ self.table_of(0).T + self.bias[:, 0]
        return logits.float()

    def bottom_logits(self, out_BPSE: Tensor) -> Tensor:
        """[B, P, 4, K], float32."""
        logits = out_BPSE[:, :, 1:] @ self.table_of(1).T + self.bias[:, 1:]
        return logits.float()

    def table_of(self, level: int) -> Tensor:
        """What codes of a level (0 top, 1 bottom) are told by, [K, E]."""
        own = (self.top, self.bottom)[level].weight[:-1]
        return own if self.vectors is None else own + self.vectors.told(level)

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]
