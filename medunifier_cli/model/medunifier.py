"""The whole model: both encoders, and the heads of the paper's four objectives.

Composition only; shapes are explained in `qformer.py` and `vqvae/generator.py`. The head of an objective
whose weight is 0 is not built. Notable choices:
- the image encoder may be frozen, but the layer norm after it is always trained, as in BLIP-2;
- the word head shares the word embeddings' matrix;
- the contrastive heads compare in fp32 whatever the precision of the layers before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.data.contract import Batch, PackedText
from medunifier_cli.model.attention.memory import ImageMemory
from medunifier_cli.model.norm import GlobalBatchNorm
from medunifier_cli.model.precision import at_least_fp32, half_type
from medunifier_cli.model.qformer import LAYER_NORM_EPS, QFormer, initialise
from medunifier_cli.model.vit import ImageEncoder, pixels
from medunifier_cli.model.vqvae.generator import Generated, ImageGenerator, Sizes
from medunifier_cli.recipe.schema import PretrainRecipe

ALIGNED = 64
"""Multiple to which the rows of the word head are filled up, for a GPU's fast kernels; CXR-BERT's vocabulary
with [DEC] has 30,523."""
VISION_NORM_EPS = 1e-5  # PyTorch's default, as in BLIP-2's trainable norm


class ContrastHead(nn.Module):
    """H_itc, equations (8) and (9): linear, optionally batch-normalised, to the unit sphere."""

    def __init__(self, width: int, embed_width: int, norm: str) -> None:
        super().__init__()
        self.project = nn.Linear(width, embed_width)
        self.norm = GlobalBatchNorm(embed_width, affine=False) if norm == "batch" else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., E], L2-normalised, fp32."""
        y = self.project(x)
        # every query of every image is a row of the statistics
        if self.norm is not None:
            y = self.norm(y.flatten(0, -2)).view(y.shape)
        # fp32 before the vector is normalised: bf16 rounds by up to 0.4 %, and dividing by a temperature of
        # 0.07 makes that 6 % of a logit
        return F.normalize(at_least_fp32(y), dim=-1)


class WordHead(nn.Module):
    """H_itg, equation (16): BERT's prediction head of width D, tied to the word embeddings."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        # no matrix here: that of the word embeddings is handed to `forward`, so that it is one parameter of
        # the model under one name, and stays tied through `load_state_dict`
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, text_ND: Tensor, word_KD: Tensor) -> Tensor:
        """[N, D] and the word embeddings -> vocabulary logits [N, K].

        In training on a GPU K is a multiple of `ALIGNED`, and the logits that belong to no word are -inf.
        """
        bias_K: Tensor = self.bias
        if self.training and word_KD.device.type == "cuda":
            # half first, where autocast would cast what is filled up
            word_KD, bias_K = aligned(word_KD.to(half_type(word_KD.device) or word_KD.dtype), bias_K)
        return F.linear(self.norm(F.gelu(self.transform(text_ND))), word_KD, bias_K)


def aligned(word_KD: Tensor, bias_K: Tensor) -> tuple[Tensor, Tensor]:
    """Word embeddings and biases, with rows of zeros and biases of -inf up to a multiple of `ALIGNED`.

    Their softmax is 0, so that losses, predictions and gradients stay what they are.
    """
    more = -len(word_KD) % ALIGNED
    return F.pad(word_KD, (0, 0, 0, more)), F.pad(bias_K, (0, more), value=-torch.inf)


class MedUnifier(nn.Module):
    """ViT, image-text encoder, the heads of ITC, ITM and ITG, and the image generator.

    Args:
        recipe: sizes, and which objectives are on.
        vocabulary: token ids of the tokenizer, [DEC] included.
        load: False leaves out the image encoder's pretrained weights. Those of a BERT are never read here: a
            new run loads them once (`checkpoint.convert.load_bert`), after that they are in its checkpoints.
        encoder: the image encoder, if it has been built already.
    """

    def __init__(
        self, recipe: PretrainRecipe, vocabulary: int, load: bool = True, encoder: ImageEncoder | None = None
    ) -> None:
        super().__init__()
        width, objectives = recipe.model.qformer.width, recipe.objectives
        self.recipe = recipe
        # first of all, as it is where it was built before: random numbers are drawn in this order
        self.vit = encoder or ImageEncoder(recipe.model.vit, recipe.data.image_size, load)
        # trained even where the ViT is frozen, whose features come out unnormalised
        self.vision_norm = nn.LayerNorm(self.vit.width, eps=VISION_NORM_EPS)
        self.qformer = QFormer(recipe.model.qformer, self.vit.width, vocabulary, recipe.text.max_tokens)
        # Heads of the paper's objectives are built here and not by `Objective.extend`: modules draw their
        # initial weights from one stream of random numbers, and another order would be another start.
        if objectives.itc:
            self.image_head = ContrastHead(width, objectives.embed_width, objectives.embed_norm)
            self.text_head = ContrastHead(width, objectives.embed_width, objectives.embed_norm)
            self.temperature = nn.Parameter(torch.tensor(objectives.temperature))
        if objectives.itm:
            self.match_head = nn.Linear(width, 2)
        if objectives.itg:
            self.word_head = WordHead(width, vocabulary)
        # BERT's initialisation is for the transformer's linear layers; the generator's convolutions below
        # have He weights, see `vqvae`
        for name, head in self.named_children():
            if name.endswith("_head"):
                initialise(head, recipe.model.qformer.init_std)
        if objectives.tig:
            sizes = Sizes(
                recipe.data.image_size,
                self.vit.patch_size,
                self.vit.width,
                width,
                recipe.model.qformer.queries,
            )
            self.generator = ImageGenerator(recipe.model.generator, sizes)

    def to_device(self, device: torch.device) -> MedUnifier:
        """Move to a device; on a GPU a frozen image encoder runs in bf16."""
        frozen = self.recipe.model.vit.frozen
        if frozen and device.type == "cuda":
            # half of the memory, and no copy for autocast to make; weights that are trained stay fp32,
            # since bf16 would round small updates away
            self.vit.vit.to(torch.bfloat16)
        elif frozen and self.recipe.model.vit.weights != "random":
            self.vit.own_weights()
        return self.to(device)

    def encode_image(self, image_BCHW: Tensor) -> ImageMemory:
        """Uni-modal pass over images, pixels in [0, 1] -> f_v and f_q, and what the other passes reuse."""
        return self.encode_features(self.vit(image_BCHW))

    def encode_features(self, feature_BVD: Tensor) -> ImageMemory:
        """As `encode_image`, from what the image encoder returns, [B, V, D_v]."""
        feature_BVD = self.vision_norm(feature_BVD)
        # once, and not in front of each layer's keys and values, which would also keep a copy each
        dtype = half_type(feature_BVD.device) or feature_BVD.dtype
        return self.qformer.encode_image(feature_BVD.to(dtype))

    def encode(self, image_or_feature: Tensor) -> ImageMemory:
        """As `encode_image`, from uint8 grey levels [B, 1, H, W] or from cached features [B, V, D_v]."""
        if image_or_feature.dtype == torch.uint8:
            return self.encode_image(pixels(image_or_feature))
        # as `ImageEncoder.forward` returns them; a GPU's frozen encoder computes in bf16 and loses nothing
        return self.encode_features(image_or_feature.float())

    def encode_text(self, text: PackedText) -> Tensor:
        """Uni-modal pass over texts -> f_t_cls [B, D]."""
        return self.qformer.encode_text(text)

    def match(
        self, memory: ImageMemory, image_M: Tensor, text: PackedText, recompute: bool = False
    ) -> Tensor:
        """Bi-directional pass over M pairs, equation (14): fp32 logits [M, 2] of no match and match.

        Args:
            memory: of B images.
            image_M: int64 on the CPU, the image that goes with text m.
            text: M texts.
            recompute: see `QFormer.fuse`.
        """
        # each query votes and the logits are averaged, not the features: equation (14), as BLIP-2
        logits_MQ2 = self.match_head(self.qformer.fuse(memory, image_M, text, recompute))
        return at_least_fp32(logits_MQ2).mean(dim=1)

    def decode_text(self, memory: ImageMemory, text: PackedText) -> Tensor:
        """Multi-modal causal pass, text b after image b -> logits [N, vocabulary] of each next token."""
        return self.word_logits(self.qformer.decode_text(memory, text))

    def word_logits(self, text_ND: Tensor) -> Tensor:
        """Equation (16): [N, D] -> [N, vocabulary]."""
        logits: Tensor = self.word_head(text_ND, self.qformer.word.weight)
        return logits

    def codes(self, image_or_feature: Tensor, text: PackedText) -> tuple[Tensor, Tensor]:
        """Top [B, T, T] and bottom [B, G, G] codes, int64, of images or cached features and their texts."""
        # the decoder, the largest part at the paper's sizes, is left out: `reconstruct` has the same codes
        # and no `draws`, as there
        memory = self.encode(image_or_feature)
        top, bottom = self.generator.encode(memory.query_BQD, memory.patch_BVD, self.encode_text(text))
        return top.code_BHW, bottom.code_BHW

    def reconstruct(self, batch: Batch) -> Generated:
        """Encode a batch to codes and decode it again; returns the images with the codes."""
        # no `draws`: outside training no dead code is moved
        memory = self.encode(batch.image_or_feature)
        generated: Generated = self.generator(
            memory.query_BQD, memory.patch_BVD, self.encode_text(batch.text)
        )
        return generated
